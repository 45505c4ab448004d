"""Ways through content: to what a path names, and to every block below one."""

from collections.abc import Callable, Iterable, Iterator

from runner.content import dagpb
from runner.content.blocks import Blocks
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.errors import ContentError
from runner.content.resolver import ContentPath, Node, find_entry, load_node
from runner.errors import EXIT_CANNOT_RUN, EXIT_LIMIT, WwError

MAX_PENDING = 1 << 18
"""Links of a walk that are known and not followed yet: it bounds the memory that they take."""


def find_node(store: Blocks, path: ContentPath) -> Node:
    """Return the node of what a path names.

    Raises:
        WwError: A block or a name is not there (code EXIT_NOT_FOUND), or as
            :func:`runner.content.resolver.load_node`.
    """
    return load_node(store, find_cid(store, path), path)


def find_cid(store: Blocks, path: ContentPath) -> Cid:
    """Return the CID of what a path names, without reading its block.

    Raises:
        WwError: As :func:`find_node`, for the directories on the way.
    """
    cid = path.root
    for index, name in enumerate(path.names):
        above = ContentPath(path.root, path.names[:index])
        cid = find_entry(store, load_node(store, cid, above), name, above)
    return cid


def below(
    get: Callable[[Cid], bytes],
    root: Cid,
    seen: set[tuple[int, bytes]],
    *,
    leaves: bool,
    expect: Callable[[Iterable[Cid]], None] = lambda _: None,
) -> Iterator[Cid]:
    """Yield the CID of a block and of every block below it, parents first, each once.

    A block below it whose CID has an identity hash is part of the one that links it, and is not
    yielded. There can be as many of these as a block has room for, so they are not remembered.

    Args:
        get: Returns the block of a CID, verified.
        root: Where to begin.
        seen: The codecs and multihashes of what is not to be walked again. Those of this walk are
            added. A multihash alone would not do: as raw, a block leads nowhere.
        leaves: Whether to get raw blocks too, which shows no more than that they are there.
        expect: Is told of blocks before they are got.

    Raises:
        WwError: A block is missing, damaged or malformed, or of a codec that cannot be walked.
    """
    pending = [root]
    while pending:
        cid = pending.pop()
        key = (cid.codec, cid.multihash)
        if key in seen:
            continue
        seen.add(key)
        if cid.codec == RAW:
            if leaves:
                get(cid)
        elif cid.codec == DAG_PB:
            try:
                linked = list(dagpb.leads_to(cid, get(cid)))
            except ContentError as error:
                raise WwError(f"block {cid}", f"malformed: {error}") from None
            expect(linked)
            pending += (
                found for found in reversed(linked) if (found.codec, found.multihash) not in seen
            )
            if len(pending) > MAX_PENDING:
                raise WwError(
                    f"block {root}",
                    f"more than {MAX_PENDING} links below it wait to be followed",
                    code=EXIT_LIMIT,
                )
        else:
            raise WwError(
                f"block {cid}",
                f"its codec is 0x{cid.codec:x}, and what it links cannot be told",
                hint="only raw (0x55) and dag-pb (0x70) are read",
                code=EXIT_CANNOT_RUN,
            )
        yield cid
