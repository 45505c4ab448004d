"""What the tests of the content package build from: stores in memory, blocks, directory trees."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from runner.content import dagpb, unixfs
from runner.content.blockstore import Blockstore
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.dagpb import Link
from runner.content.varint import Buffer
from runner.errors import EXIT_NOT_FOUND, WwError


class MemoryStore(Blockstore):
    """A store that keeps its blocks in memory, for tests that are not about the disk."""

    def __init__(self) -> None:
        super().__init__("/nonexistent")
        self.blocks: dict[bytes, bytes] = {}

    def put(self, cid: Cid, data: Buffer, *, verified: bool = False) -> None:
        self.blocks[cid.multihash] = bytes(data)

    def get(self, cid: Cid) -> bytes:
        if cid.multihash not in self.blocks:
            raise WwError(f"block {cid}", "not here", code=EXIT_NOT_FOUND)
        return self.blocks[cid.multihash]

    def sync(self) -> None:
        pass


def put_raw(store: Blockstore, data: bytes) -> Cid:
    cid = Cid.of(data, codec=RAW)
    store.put(cid, data)
    return cid


def put_node(store: Blockstore, links: Sequence[Link], data: unixfs.Data) -> Cid:
    return put_block(store, dagpb.encode(links, unixfs.encode(data)))


def put_block(store: Blockstore, block: bytes) -> Cid:
    cid = Cid.of(block, codec=DAG_PB)
    store.put(cid, block)
    return cid


def put_file(
    store: Blockstore, children: Iterable[tuple[Cid, int]], filesize: int | None = None
) -> Cid:
    """Put a file's node with these children, each with the size that the node claims for it."""
    pairs = list(children)
    sizes = tuple(size for _, size in pairs)
    data = unixfs.Data(
        unixfs.FILE, filesize=sum(sizes) if filesize is None else filesize, blocksizes=sizes
    )
    return put_node(store, [Link(cid, "", 0) for cid, _ in pairs], data)


def put_directory(store: Blockstore, entries: Iterable[tuple[str, Cid]]) -> Cid:
    links = [Link(cid, name, 0) for name, cid in entries]
    return put_node(store, links, unixfs.Data(unixfs.DIRECTORY))


def block_files(home: str | Path) -> list[str]:
    """Return the paths of all blocks that a store has on disk."""
    return sorted(
        os.path.join(directory, name)
        for directory, _, names in os.walk(os.path.join(home, "blocks"))
        for name in names
        if name.endswith(".data")
    )
