"""The rules of who may import whom, and what a run may import at all."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, REPO, Ww
from tests.features import EMULATED, needs
from tests.jail.inside import variant

STEPS = {
    *(
        "admission",
        "cgroups",
        "chroot",
        "code",
        "descriptors",
        "landlock",
        "lifeline",
        "limits",
        "mounts",
    ),
    *("namespaces", "network", "privileges", "seccomp", "session"),
}


def _modules(package: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((REPO / package).rglob("*.py")):
        name = ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text())


def _imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            found.add(str(node.module))
    return found


RUNNER = dict(_modules("runner"))
SANDBOX = dict(_modules("sandbox"))


@pytest.mark.parametrize("name", RUNNER)
def test_the_runner_uses_the_sandbox_through_its_public_names_only(name: str) -> None:
    tree = RUNNER[name]
    modules = {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sandbox")
    }
    assert modules <= {"sandbox"}
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "sandbox"
        for alias in node.names
    }
    import sandbox

    assert names <= set(sandbox.__all__)


@pytest.mark.parametrize("name", RUNNER)
def test_the_runner_never_imports_the_engine(name: str) -> None:
    assert not any(module.split(".")[0] == "wasmtime" for module in _imports(RUNNER[name]))


@pytest.mark.parametrize("name", SANDBOX)
def test_the_sandbox_knows_nothing_of_the_runner(name: str) -> None:
    roots = {module.split(".")[0] for module in _imports(SANDBOX[name])}
    assert not roots & {"runner", "click", "sexpdata"}


@pytest.mark.parametrize("step", sorted(STEPS))
def test_the_steps_of_the_jail_do_not_import_each_other(step: str) -> None:
    imported = _imports(SANDBOX[f"sandbox.{step}"])
    assert not imported & {f"sandbox.{other}" for other in STEPS - {step}}


def test_only_syscalls_declares_functions_of_libc_and_only_seccomp_those_of_libseccomp() -> None:
    for name, tree in SANDBOX.items():
        loads = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in ("CDLL", "PyDLL", "pythonapi")
        ]
        assert not loads or name in ("sandbox.syscalls", "sandbox.seccomp"), name


# Beside the zygote: the call itself, `ww doctor`'s probes, and an empty root directory, which is
# what a process leaves that has ended.
FORKING = {"sandbox.zygote", "sandbox.syscalls", "sandbox.probes", "sandbox.chroot"}


def test_only_the_zygote_and_the_probes_fork() -> None:
    makers = {"fork", "fork_into", "forkpty", "Popen", "vfork"}
    for name, tree in {**SANDBOX, **RUNNER}.items():
        calls = {
            node.func.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert not calls & makers or name in FORKING, name


@pytest.mark.parametrize(("one", "other"), [("grants", "content"), ("content", "grants")])
def test_grants_and_content_know_nothing_of_each_other(one: str, other: str) -> None:
    for name, tree in RUNNER.items():
        if name.startswith(f"runner.{one}"):
            assert not any(m.startswith(f"runner.{other}") for m in _imports(tree)), name


# What a run imports. The numbers are a budget: raising one is a decision about start-up time.
RUNNER_BUDGET = 85
SPAWNER_BUDGET = 177
NEVER_IN_RUNNER = (
    *("wasmtime", "ctypes", "prctl", "pyroute2", "sexpdata", "subprocess", "dataclasses"),
    *("http", "urllib.request", "ssl", "asyncio", "runner.content", "logging", "click", "typing"),
    *("re", "enum", "json", "hashlib", "contextlib", "functools", "collections", "socket"),
    *("signal", "struct", "runner.cli", "dask", "distributed"),
)
NEVER_IN_SPAWNER = (
    *("click", "pyroute2", "sexpdata", "subprocess", "dataclasses", "inspect", "runner"),
    *("http", "ssl", "asyncio", "hashlib", "logging", "wasmtime.component", "site"),
)


def _holds(modules: list[str], names: tuple[str, ...]) -> set[str]:
    return {n for n in names if any(m == n or m.startswith(f"{n}.") for m in modules)}


@needs(
    "processor",
    not EMULATED,
    "a spawner that takes seconds to end is killed, and to compile is told of: with more modules",
)
def test_a_run_of_a_local_cell_imports_no_more_than_it_needs(ww: Ww) -> None:
    # -S: what `site` imports (start-up hooks of installed packages) is not ours to answer for.
    program = """
import os, sys
sys.path[:] = sys.argv.pop(1).split(":")
end = os._exit
def told(code):
    os.write(2, " ".join(sys.modules).encode())
    end(code)
os._exit = told
import runner.__main__
runner.__main__.main()
"""
    path = ":".join(p for p in sys.path if p)
    # Compiled before: what tells of a compilation that takes long is imported then.
    assert ww.run("run", EXAMPLES / "hello" / "hello.wasm").returncode == 0
    done = ww.call(
        [
            *(sys.executable, "-I", "-S", "-c", program, f"{REPO}:{path}"),
            *("run", "--fd", "a=3", EXAMPLES / "hello" / "hello.wasm"),
        ],
        fds={3: Path("/dev/null")},
    )
    assert done.returncode == 0, done.stderr
    modules = done.stderr.decode().split()
    assert _holds(modules, NEVER_IN_RUNNER) == set()
    assert len(modules) <= RUNNER_BUDGET, sorted(modules)


def test_the_spawner_imports_no_more_than_it_needs(ww: Ww) -> None:
    listing = ww.tmp / "modules"
    patch = f"""
from sandbox import spawner
import sys
serve = spawner.Spawner.serve
def told(self):
    open({str(listing)!r}, "w").write(" ".join(sys.modules))
    serve(self)
spawner.Spawner.serve = told
"""
    done = ww.call([*variant(patch), "run", EXAMPLES / "hello" / "hello.wasm"])
    assert done.returncode == 0, done.stderr
    modules = listing.read_text().split()
    assert _holds(modules, NEVER_IN_SPAWNER) == set()
    assert len(modules) <= SPAWNER_BUDGET, sorted(modules)


def test_the_sandbox_can_be_imported_without_the_engine() -> None:
    code = "import sys, sandbox; sys.exit('wasmtime' in sys.modules or 'ctypes' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)
