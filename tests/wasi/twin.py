"""Runs the remote cell under the engine's own WASI and under this host, with the same commands.

    python -m tests.wasi.twin REMOTE.WASM FOLDER

A request is a line of JSON, and so is its answer. Each cell is a fork of this process, so hundreds
of them take seconds; there is no jail, which other tests are about. What the cell finds:

    "files"   0 and 1 empty; 3 a directory `/`; 4 and 5 its files `f` and `g`, for everything
    "pipes"   0 a pipe with `input` in it, whose writer has left; 1 a pipe, which is read unless
              `read` is false
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import wasmtime

from sandbox.wasi.directory import BaseDirectory
from sandbox.wasi.files import File, open_grant
from sandbox.wasi.tree import Directory
from tests.wasi.host_here import Host, LinkedCell

PATIENCE = 60.0
ANSWERS = 2
NAMES = ("f", "g")
EVERYTHING = (1 << 30) - 1


class Twins:
    """Both hosts, with the cell compiled for each."""

    def __init__(self, wasm: Path, folder: Path) -> None:
        self.folder = folder
        config = wasmtime.Config()
        config.parallel_compilation = False  # its threads would be lost in a fork
        self.engine = wasmtime.Engine(config)
        self.linker = wasmtime.Linker(self.engine)
        self.linker.define_wasi()
        self.theirs = wasmtime.Module.from_file(self.engine, str(wasm))
        self.host = Host()
        self.ours = wasmtime.Module.from_file(self.host.engine, str(wasm))

    def engine_runs(self, argv: Sequence[str], files: bool) -> int:
        config = wasmtime.WasiConfig()
        config.argv = list(argv)
        config.inherit_stdin()
        config.inherit_stdout()
        config.inherit_stderr()
        if files:
            config.preopen_dir(str(self.folder), "/")
        store = wasmtime.Store(self.engine)
        store.set_wasi(config)
        start = self.linker.instantiate(store, self.theirs).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        try:
            start(store)
        except wasmtime.ExitTrap as end:
            return end.code
        return 0

    def host_runs(self, argv: Sequence[str], files: bool) -> int:
        granted: dict[int, File | BaseDirectory] = {
            0: open_grant(os.dup(0), "r"),
            1: open_grant(os.dup(1), "w"),
            2: open_grant(os.dup(2), "w"),
        }
        if files:
            folder = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
            granted[3] = Directory(folder, "rw", b"/")
            for number, name in enumerate(NAMES, 4):
                fd = os.open(self.folder / name, os.O_RDWR | os.O_CLOEXEC)
                granted[number] = open_grant(fd, "rw")
        return LinkedCell(self.host, self.ours, granted, argv).run()

    def obey(self, request: dict[str, Any]) -> dict[str, Any]:
        files = request["what"] == "files"
        return {
            "theirs": self.once(self.engine_runs, request, request["before"] if files else []),
            "ours": self.once(self.host_runs, request, []),
        }

    def once(
        self,
        run: Callable[[Sequence[str], bool], int],
        request: dict[str, Any],
        before: Sequence[str],
    ) -> dict[str, Any]:
        files = request["what"] == "files"
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        if files:
            for name in NAMES:
                (self.folder / name).write_bytes(request["input"].encode())
        stdin, into = os.pipe()
        os.write(into, b"" if files else request["input"].encode())
        os.close(into)
        output, stdout = os.pipe()
        answers, its_answers = os.pipe()
        child = os.fork()
        if not child:
            try:
                if files:
                    stdin = os.open("/dev/null", os.O_RDONLY)
                    stdout = os.open("/dev/null", os.O_WRONLY)
                for number, fd in enumerate((stdin, stdout, its_answers)):
                    os.dup2(fd, number)
                os.closerange(3, 200)
                argv = ["remote", "-", str(ANSWERS), *before, *request["commands"]]
                code = run(argv, files)
            except BaseException as error:
                # Behind the last answer: which call it was is known by that.
                cause = " ".join(str(error).split())
                os.write(ANSWERS, f"died {type(error).__name__} {cause}\n".encode())
                code = 70
            finally:
                os._exit(code)
        for fd in (stdin, stdout, its_answers):
            os.close(fd)
        if not request["read"]:
            os.close(output)
            output = -1
        said = read_all(answers, child).decode(errors="replace").splitlines()
        _, status = os.waitpid(child, 0)
        written = b""
        if output >= 0:
            written = read_all(output, child)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "said": said[len(before) :],
            "written": written.decode(),
            "files": {path.name: look(path) for path in sorted(self.folder.iterdir())},
        }


def look(path: Path) -> str:
    """What is at a path; of a file its size and how it begins, for it may have huge holes."""
    if path.is_symlink():
        return f"-> {path.readlink()}"
    if path.is_dir():
        return f"directory of {[entry.name for entry in path.iterdir()]}"
    with path.open("rb") as file:
        return f"{path.stat().st_size} {file.read(256).hex()}"


def read_all(fd: int, child: int) -> bytes:
    """All that a child writes, which ends it if that takes too long."""
    deadline = time.monotonic() + PATIENCE
    parts: list[bytes] = []
    while True:
        if not select.select([fd], [], [], deadline - time.monotonic())[0]:
            os.kill(child, signal.SIGKILL)
            deadline = time.monotonic() + PATIENCE
            continue
        part = os.read(fd, 1 << 16)
        if not part:
            os.close(fd)
            return b"".join(parts)
        parts.append(part)


def main() -> None:
    twins = Twins(Path(sys.argv[1]), Path(sys.argv[2]))
    for line in sys.stdin:
        print(json.dumps(twins.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
