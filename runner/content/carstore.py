"""CARs into the store, and out of it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

from runner.content import dagpb, hamt, unixfs, walk
from runner.content.blocks import Blocks
from runner.content.blockstore import Blockstore
from runner.content.car import MAX_SECTIONS, Car, CarError, Reader, TooLarge, TooMany, read_car
from runner.content.carfile import car_error
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.errors import ContentError
from runner.content.resolver import ContentPath, load_node
from runner.errors import EXIT_FAILURE, EXIT_LIMIT, EXIT_NOT_FOUND, WwError

Scope = Literal["all", "entity"]
"""What of a DAG goes into a CAR, as ``dag-scope`` of a trustless gateway has it."""

MAX_LINKS = MAX_SECTIONS
"""Links of all blocks of one CAR that is imported. Each block but a root needs one, and they bound
the memory for the walk that finds out what is missing."""


class Imported(NamedTuple):
    """What an import found.

    Attributes:
        roots: The roots, each once; the DAG under each of them is complete in the store.
        blocks: How many blocks the CAR has, each counted once.
        extras: How many of them are under none of its roots.
    """

    roots: tuple[Cid, ...]
    blocks: int
    extras: int


def import_car(store: Blockstore, stream: Reader, shown: str, *, max_size: int) -> Imported:
    """Put all blocks of a CAR into a store, wait for the disk, and find its DAGs complete.

    A block that the CAR lacks may be in the store already. If something is wrong, the blocks before
    it stay: each is verified, and the next garbage collection removes what nothing pins.

    Args:
        store: Where the blocks go.
        stream: Where the CAR comes from.
        shown: What that is called in messages.
        max_size: Bytes of the largest CAR to accept.

    Raises:
        WwError: The CAR is malformed or has a wrong block (code EXIT_FAILURE), goes beyond a limit
            (EXIT_LIMIT), or is not version 1 or of content that is not read here
            (EXIT_CANNOT_RUN); a block is missing; or the store cannot be written.
    """
    try:
        car = read_car(stream, max_size=max_size)
        if not car.roots:
            raise WwError(shown, "it names no roots", hint="have it exported with its root")
        leaves = _put_blocks(store, car, shown)
    except CarError as error:
        raise _import_error(shown, error) from None
    store.sync()
    roots = tuple(dict.fromkeys(car.roots))
    walked: set[tuple[int, bytes]] = set()
    for root in roots:
        _check_complete(store, root, walked, {RAW: car.seen, DAG_PB: leaves}, shown)
    reached = {multihash for _, multihash in walked}
    return Imported(roots, len(car.seen), len(car.seen - reached))


def _put_blocks(store: Blockstore, car: Car, shown: str) -> set[bytes]:
    """Put all blocks of a CAR into a store.

    Returns:
        The multihashes of the blocks that are dag-pb and lead nowhere.
    """
    leaves: set[bytes] = set()
    links_left = MAX_LINKS
    for cid, block in car:
        store.put(cid, block, verified=True)
        count = _count_links(cid, block)
        if count == 0:
            leaves.add(cid.multihash)
        links_left -= count or 0
        if links_left < 0:
            raise WwError(shown, f"its blocks have more than {MAX_LINKS} links", code=EXIT_LIMIT)
    return leaves


def _count_links(cid: Cid, block: bytes) -> int | None:
    """Return how many blocks one leads to, or None for one that the walk has to judge."""
    if cid.codec != DAG_PB:
        return None
    try:
        return sum(1 for _ in dagpb.leads_to(cid, block))
    except ContentError:
        return None


def _check_complete(
    store: Blockstore,
    root: Cid,
    walked: set[tuple[int, bytes]],
    verified: Mapping[int, set[bytes]],
    shown: str,
) -> None:
    """Find everything below a root.

    Args:
        store: Where it is.
        root: The root.
        walked: What is below other roots, as :func:`runner.content.walk.below` has it.
        verified: By codec, the multihashes of blocks without links that were put a moment ago.
            They are most of the bytes, and are not read again.
        shown: What the CAR is called in messages.
    """

    def get(cid: Cid) -> bytes:
        if cid.multihash in verified[cid.codec]:
            return b""  # a block without links, as this is
        try:
            return store.get(cid)
        except WwError as error:
            if error.code != EXIT_NOT_FOUND:
                raise
        raise WwError(
            shown,
            f"incomplete: /ipfs/{root} needs block {cid}, which it does not hold",
            hint="what it does hold is in the store; import the rest from elsewhere",
        )

    for _ in walk.below(get, root, walked, leaves=True):
        pass


def _import_error(shown: str, error: CarError) -> WwError:
    told = car_error(shown, error)
    if not told.hint and error.offset == 0 and told.code == EXIT_FAILURE:
        told.hint = "if it is no CAR, add it with ww export"
    if isinstance(error, TooLarge) and not isinstance(error, TooMany):
        told.hint = "if you trust it to be that large, raise --max-size"
    return told


def export_blocks(
    store: Blocks, path: ContentPath, cid: Cid, scope: Scope
) -> Iterator[tuple[Cid, bytes]]:
    """Yield the blocks of a CAR, always the same in the same order: depth first, each once.

    Args:
        store: Where the blocks are.
        path: The path of what is exported, for messages.
        cid: Its root block.
        scope: All that is below it; or what it takes to read it, which for a directory is the
            directory without what is in it.

    Raises:
        WwError: A block is missing, damaged or malformed, or there are more than a CAR may have.
    """
    blocks = _below(store.get, cid) if scope == "all" else _entity(store, path, cid)
    for count, pair in enumerate(blocks, 1):
        if count > MAX_SECTIONS:
            raise WwError(
                str(path),
                f"it has more than {MAX_SECTIONS} blocks, the most of a CAR",
                hint="export parts of it",
                code=EXIT_LIMIT,
            )
        yield pair


def _below(get: Callable[[Cid], bytes], root: Cid) -> Iterator[tuple[Cid, bytes]]:
    block = b""

    def got(cid: Cid) -> bytes:
        nonlocal block
        block = get(cid)
        return block

    # Blocks that differ in their codec or version only are one block, and one section.
    seen: set[bytes] = set()
    for cid in walk.below(got, root, set(), leaves=True):
        if cid.multihash not in seen:
            seen.add(cid.multihash)
            yield cid, block


def _entity(store: Blocks, path: ContentPath, cid: Cid) -> Iterator[tuple[Cid, bytes]]:
    node = load_node(store, cid, path)
    if node.data.type not in (unixfs.DIRECTORY, unixfs.HAMT_SHARD):
        yield from _below(store.get, cid)
        return
    yield cid, store.get(cid)
    if node.data.type == unixfs.DIRECTORY:
        return
    shards: list[tuple[Cid, bytes]] = []

    def load(shard: Cid) -> bytes:
        block = store.get(shard)
        shards.append((shard, block))
        return block

    try:
        # Every shard leads to an entry, so none is left at the end.
        for _ in hamt.entries(node.links, node.data, load):
            yield from shards
            shards.clear()
    except ContentError as error:
        raise WwError(str(path), f"the directory is malformed: {error}") from None
