"""Whom the flags and the environment say to ask, and in which order."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from runner.cells import FetchOptions
from runner.content.cid import RAW, Cid
from runner.content.http import Client, Limits
from runner.content.source import ENTRY_POINTS, Source
from runner.content.sources import make_sources, open_content
from runner.errors import EXIT_NOT_FOUND, EXIT_USAGE, WwError
from tests.conftest import REPO
from tests.unit.content_sources.stub import MemorySource

CID = Cid.of(b"absent", codec=RAW)
NODE = "node /ip4/127.0.0.1/tcp/5001/http"


def made(
    environ: Mapping[str, str], options: FetchOptions | None = None
) -> tuple[list[Source], list[str]]:
    warnings: list[str] = []
    sources = make_sources(environ, options or FetchOptions(), lambda count: None, warnings.append)
    for source in sources:
        source.close()
    return sources, warnings


def names(environ: Mapping[str, str], options: FetchOptions | None = None) -> list[str]:
    sources, warnings = made(environ, options)
    assert warnings == []
    return [source.name for source in sources]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "repo" / "blocks").mkdir(parents=True)
    return tmp_path / "repo"


def test_without_a_word_the_node_of_this_machine_is_asked_and_nobody_else(tmp_path: Path) -> None:
    assert names({"HOME": str(tmp_path)}) == [NODE]
    assert names({}) == [NODE]
    assert names({"HOME": str(tmp_path), "WW_IPFS": "", "WW_GATEWAYS": " , "}) == [NODE]
    (source,) = made({})[0]
    assert not source.named


@pytest.mark.parametrize("by_path", [True, False])
def test_a_repository_that_is_there_is_read_and_says_where_its_node_listens(
    tmp_path: Path, repository: Path, by_path: bool
) -> None:
    if by_path:
        environ = {"IPFS_PATH": str(repository), "HOME": "/nonexistent"}
    else:
        repository = repository.rename(tmp_path / ".ipfs")
        environ = {"HOME": str(tmp_path)}
    assert names(environ) == [f"repository {repository}", NODE]
    (repository / "api").write_text("/ip4/127.0.0.1/tcp/4711\n")
    assert names(environ) == [f"repository {repository}", "node /ip4/127.0.0.1/tcp/4711"]
    assert not any(source.named for source in made(environ)[0])


def test_an_address_of_a_running_node_that_is_none_is_told(repository: Path) -> None:
    for text in (b"nonsense", b"\xff"):
        (repository / "api").write_bytes(text)
        sources, warnings = made({"IPFS_PATH": str(repository)})
        assert [source.name for source in sources] == [f"repository {repository}", NODE]
        assert [warning.partition(": ")[0] for warning in warnings] == [f"{repository}/api"]


def test_a_node_that_the_user_names_is_the_only_one(repository: Path) -> None:
    environ = {"IPFS_PATH": str(repository), "WW_IPFS": "http://node.example:5001"}
    assert names(environ) == ["node http://node.example:5001"]
    assert made(environ)[0][0].named
    flag = FetchOptions(ipfs="/unix/run/node.sock")
    assert names(environ, flag) == ["node /unix/run/node.sock"]


def test_a_repository_that_the_user_names_is_read_and_its_node_asked_if_it_runs(
    repository: Path,
) -> None:
    environ = {"WW_IPFS": str(repository)}
    assert names(environ) == [f"repository {repository}"]
    (repository / "api").write_text("/ip4/127.0.0.1/tcp/4711")
    sources, _ = made(environ)
    assert [(source.name, source.named) for source in sources] == [
        (f"repository {repository}", True),
        # It may have ended without a word.
        ("node /ip4/127.0.0.1/tcp/4711", False),
    ]


def test_a_repository_that_the_user_names_need_not_be_there_to_be_told_of(tmp_path: Path) -> None:
    assert names({}, FetchOptions(ipfs=f"{tmp_path}/x")) == [f"repository {tmp_path}/x"]


def test_off_is_nobody(repository: Path) -> None:
    environ = {"IPFS_PATH": str(repository), "WW_IPFS": "off"}
    assert names(environ) == []
    assert names({}, FetchOptions(ipfs="off")) == []


def test_gateways_come_after_the_node_in_their_order() -> None:
    environ = {"WW_GATEWAYS": "https://b.example,http://a.example:1/x\n https://b.example/"}
    assert names(environ) == [
        *(NODE, "gateway https://b.example", "gateway http://a.example:1/x"),
    ]
    environ["IPFS_GATEWAY"] = "https://c.example"
    assert len(names(environ)) == 3
    assert names({"IPFS_GATEWAY": "https://c.example"}) == [NODE, "gateway https://c.example"]
    flag = FetchOptions(gateways=("https://d.example", "https://e.example"), ipfs="off")
    assert names(environ, flag) == ["gateway https://d.example", "gateway https://e.example"]


def test_offline_asks_nobody_over_a_connection(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug(monkeypatch, mine=lambda environ: MemorySource("mine", {}))
    (repository / "api").write_text("/ip4/127.0.0.1/tcp/4711")
    offline = FetchOptions(offline=True)
    environ = {"WW_GATEWAYS": "https://b.example"}
    assert names(environ, offline) == []
    assert names({**environ, "WW_IPFS": "/unix/run/node.sock"}, offline) == []
    assert names({**environ, "IPFS_PATH": str(repository)}, offline) == [f"repository {repository}"]


@pytest.mark.parametrize(
    ("environ", "options", "where"),
    [
        ({"WW_IPFS": "nonsense"}, FetchOptions(), "WW_IPFS"),
        ({"WW_GATEWAYS": "nonsense"}, FetchOptions(), "WW_GATEWAYS"),
        ({"IPFS_GATEWAY": "/ip4/127.0.0.1/tcp/8080"}, FetchOptions(), "IPFS_GATEWAY"),
        ({"WW_FETCH_TIMEOUT": "soon"}, FetchOptions(), "WW_FETCH_TIMEOUT"),
        ({"WW_FETCH_TIMEOUT": "0"}, FetchOptions(), "WW_FETCH_TIMEOUT"),
        ({"WW_IPFS": "nonsense"}, FetchOptions(ipfs="worse"), "--ipfs"),
        ({}, FetchOptions(gateways=("off",)), "--gateway"),
    ],
)
def test_what_is_malformed_is_wrong_usage(
    tmp_path: Path, environ: dict[str, str], options: FetchOptions, where: str
) -> None:
    with (
        pytest.raises(WwError) as caught,
        open_content({"WW_HOME": str(tmp_path), **environ}, options) as blocks,
    ):
        blocks.get(CID)
    assert (caught.value.code, caught.value.where) == (EXIT_USAGE, where)


def test_the_time_that_a_source_may_take_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Limits] = []

    class Noting(Client):
        def __init__(self, *args: Any, limits: Limits, **options: Any) -> None:
            seen.append(limits)
            super().__init__(*args, limits=limits, **options)

    monkeypatch.setattr("runner.content.kubo.Client", Noting)
    made({"WW_FETCH_TIMEOUT": "2m"})
    made({})
    assert seen == [Limits(idle=120), Limits()]


# --- sources of other packages -------------------------------------------------------------------


def plug(monkeypatch: pytest.MonkeyPatch, **factories: Any) -> None:
    """Register factories as if packages had brought them."""

    class Entry:
        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> Any:
            if isinstance(factories[self.name], Exception):
                raise factories[self.name]
            return factories[self.name]

    def entry_points(*, group: str) -> list[Entry]:
        assert group == ENTRY_POINTS == "wetware.sources"
        return [Entry(name) for name in factories]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


def test_a_package_can_bring_a_source_which_is_asked_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    block = b"a block of mine"
    cid = Cid.of(block, codec=RAW)
    seen: list[Mapping[str, str]] = []

    def factory(environ: Mapping[str, str]) -> Source:
        seen.append(environ)
        return MemorySource("mine", {cid.multihash: block})

    plug(monkeypatch, mine=factory, none=lambda environ: None)
    environ = {"WW_HOME": str(tmp_path), "WW_IPFS": "off", "WW_GATEWAYS": "http://127.0.0.1:1"}
    assert names(environ) == ["gateway http://127.0.0.1:1", "mine"]
    with open_content(environ, FetchOptions(), warn=lambda text: None) as blocks:
        assert blocks.get(cid) == block
    assert seen == [environ, environ]


def test_a_source_that_cannot_be_made_is_told_of_and_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(environ: Mapping[str, str]) -> Source:
        raise ZeroDivisionError("by zero")

    plug(
        monkeypatch,
        one=failing,
        two=ImportError("no such module"),
        three=lambda environ: "x",
        four=lambda environ: MemorySource("four", {}),
    )
    sources, warnings = made({"WW_IPFS": "off"})
    assert [source.name for source in sources] == ["four"]
    assert [warning.partition(":")[0] for warning in warnings] == [
        *("source one", "source two", "source three"),
    ]


# --- what is missing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (FetchOptions(), "name a node with --ipfs or a gateway with --gateway"),
        (FetchOptions(offline=True), "nobody else is asked, for --offline"),
    ],
)
def test_without_a_source_the_error_says_what_can_be_done(
    tmp_path: Path, options: FetchOptions, hint: str
) -> None:
    environ = {"WW_HOME": str(tmp_path), "WW_IPFS": "off"}
    with open_content(environ, options) as blocks, pytest.raises(WwError) as caught:
        blocks.get(CID)
    assert caught.value.code == EXIT_NOT_FOUND
    assert caught.value.where == f"block {CID}"
    assert caught.value.what == f"not in the store {tmp_path}"
    assert hint in caught.value.hint


def test_what_is_in_the_store_needs_no_code_of_any_source(tmp_path: Path) -> None:
    program = """
import json, sys
from runner.cells import FetchOptions, open_cell
environ = json.loads(sys.argv[1])
open_cell(sys.argv[2], environ, FetchOptions())
print(*sys.modules)
"""
    export = """
import sys
from runner.content.blockstore import Blockstore
from runner.content.importer import import_path, BY_CID_VERSION
with Blockstore(sys.argv[1]) as store:
    print(import_path(store, sys.argv[2], profile=BY_CID_VERSION[0]))
"""

    def python(code: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=REPO,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 4096)
    home = str(tmp_path / "home")
    cid = python(export, home, str(large))
    environ = {"WW_HOME": home, "WW_GATEWAYS": "https://gate.example", "WW_IPFS": "/unix/x/y"}
    modules = set(python(program, json.dumps(environ), f"/ipfs/{cid}").split())
    assert "runner.content.sources" in modules
    unwanted = {
        *("http", "http.client", "ssl", "urllib", "email", "threading", "queue"),
        *("importlib.metadata", "ipaddress", "runner.content.http", "runner.content.background"),
        *("runner.content.source", "runner.content.progress", "runner.content.ipns"),
    }
    already_there = set(python("import sys\nprint(*sys.modules)").split())
    assert modules & unwanted - already_there == set()
