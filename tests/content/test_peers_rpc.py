"""Content from a node with the RPC API of Kubo, by another implementation: js-ipfs."""

import hashlib
from pathlib import Path

import pytest

from runner.content.blockstore import Blockstore
from runner.content.cid import RAW, Cid
from tests.conftest import EXAMPLES, Ww
from tests.content.peers import Gateway, Line, Rpc, check_whole, long_name, read_tree

HELLO = EXAMPLES / "hello" / "hello.wasm"


@pytest.mark.parametrize("options", [{}, {"cid_version": 1, "raw_leaves": "true"}])
def test_what_is_added_there_runs_here(rpc: Rpc, ww: Ww, options: dict[str, object]) -> None:
    root = rpc.add(HELLO, chunker="size-1000", **options)
    direct = ww.run("run", HELLO)
    done = ww.run("run", "--ipfs", rpc.multiaddr, f"/ipfs/{root}")
    assert (done.returncode, done.stdout) == (0, direct.stdout), done.stderr
    check_whole(ww.home)
    done = ww.run("run", "--offline", f"/ipfs/{root}", env={"WW_IPFS": rpc.multiaddr})
    assert (done.returncode, done.stdout) == (0, direct.stdout), done.stderr


def test_what_is_exported_here_is_read_there_block_by_block(rpc: Rpc, ww: Ww, tree: Path) -> None:
    address = ww.export(tree, "--hidden")
    with Blockstore(str(ww.home)) as store:
        from runner.content.carstore import export_blocks
        from runner.content.resolver import parse_path

        root = Cid.parse(address.removeprefix("/ipfs/"))
        for cid, block in export_blocks(store, parse_path(address), root, "all"):
            rpc.put(cid, block)
    for name in ("large", "nothing", "cells/hello.wasm", "names/deep/deeper/file"):
        assert rpc.read(f"{address}/{name}") == (tree / name).read_bytes()
    assert rpc.names(f"{address}/names") == {path.name for path in (tree / "names").iterdir()}


@pytest.mark.parametrize("how", ["multiaddr", "url", "file", "environment"])
def test_a_node_is_found_by_any_of_its_addresses(rpc: Rpc, ww: Ww, how: str) -> None:
    root = rpc.add(ww.file("data", how.encode()))
    arguments, env = {
        "multiaddr": (("--ipfs", rpc.multiaddr), {}),
        "url": (("--ipfs", f"http://127.0.0.1:{rpc.port}"), {}),
        "environment": ((), {"WW_IPFS": rpc.multiaddr}),
        # Nobody has named it; the node has left its address where it belongs.
        "file": ((), {"WW_IPFS": "", "IPFS_PATH": str(rpc.repository)}),
    }[how]
    done = ww.run("import", *arguments, f"/ipfs/{root}", "-o", "out", env=env)
    assert done.returncode == 0, done.stderr
    assert (ww.tmp / "out").read_bytes() == how.encode()


def test_a_tree_with_a_sharded_directory_comes_to_disk(rpc: Rpc, ww: Ww, tree: Path) -> None:
    root = rpc.add(tree, shard_split_threshold=5000)
    assert rpc.names(f"/ipfs/{root}/many") >= {long_name(0)}
    env = {"WW_IPFS": rpc.multiaddr}
    done = ww.run("import", f"/ipfs/{root}/many/{long_name(7)}", "-o", "entry", env=env)
    assert (done.returncode, (ww.tmp / "entry").read_bytes()) == (0, b"7"), done.stderr
    done = ww.run("import", f"/ipfs/{root}", "-o", "read", env=env)
    assert done.returncode == 0, done.stderr
    assert read_tree(ww.tmp / "read") == read_tree(tree)
    check_whole(ww.home)


def test_the_empty_answers_of_a_node_that_has_it_not_are_no_content(rpc: Rpc, ww: Ww) -> None:
    # js-ipfs says 200, and sends a CAR with this root in its header, and without a block.
    absent = Cid.of(b"nobody has this", codec=RAW)
    assert rpc.call("dag/export", arg=absent, timeout="1s")
    # It waits for others, which it has not, as long as it is told to.
    env = {"WW_IPFS": rpc.multiaddr, "WW_FETCH_TIMEOUT": "2"}
    done = ww.run("run", f"/ipfs/{absent}", env=env)
    assert (done.returncode, done.stdout) == (127, b"")
    assert str(absent).encode() in done.stderr
    assert rpc.multiaddr.encode() in done.stderr


@pytest.mark.parametrize("second", [True, False])
def test_a_node_that_is_stopped_in_the_middle(
    gateway: Gateway, ww: Ww, tmp_path: Path, second: bool
) -> None:
    size, chunk = 4 << 20, 64 << 10
    large = ww.file("large", hashlib.shake_128(b"rpc").digest(size))
    root = gateway.add(large, chunk=chunk)
    command = ("import", f"/ipfs/{root}", "-o", "read")
    gateways = {"WW_GATEWAYS": gateway.url}
    with Rpc(tmp_path / "repo") as mortal:
        assert mortal.add(large, chunker=f"size-{chunk}") == root
        with Line(mortal.port, size // 2, mortal.kill) as line:
            address = f"/ip4/127.0.0.1/tcp/{line.port}/http"
            env = {"WW_IPFS": address, **(gateways if second else {})}
            gateway.requests()
            done = ww.run(*command, env=env)
            assert line.is_broken
    kept = check_whole(ww.home)
    if not second:
        assert (done.returncode, done.stdout) == (127, b""), done.stderr
        assert address.encode() in done.stderr
        assert not (ww.tmp / "read").exists()
        assert kept > 10
        done = ww.run(*command, env=gateways)
    assert done.returncode == 0, done.stderr
    assert (ww.tmp / "read").read_bytes() == large.read_bytes()
    # What had come before was not asked for again.
    assert 0 < len(gateway.requests()) < size // chunk * 3 // 4
    check_whole(ww.home)


def test_a_node_that_nobody_named_may_be_absent(ww: Ww, tmp_path: Path) -> None:
    with Rpc(tmp_path / "repo") as gone:
        pass
    env = {"WW_IPFS": "", "IPFS_PATH": str(gone.repository)}
    (gone.repository / "api").write_text(gone.multiaddr)
    absent = Cid.of(b"nobody has this", codec=RAW)
    done = ww.run("run", f"/ipfs/{absent}", env=env)
    assert done.returncode == 127
    assert b"warning" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
