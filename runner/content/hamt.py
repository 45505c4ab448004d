"""Sharded directories: a hash array mapped trie of UnixFS nodes.

After https://specs.ipfs.tech/unixfs/#dag-pb-hamtdirectory. A shard has ``fanout`` slots. Its bit
field says which are taken, and it has one link for each of those, in their order. A link's name
begins with the slot's number in upper case hexadecimal. If that is all, the link leads to a shard
one level down, whose slots are chosen by the next bits of the name's hash; what follows it, if
anything does, is the name of an entry.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from runner.content import dagpb, murmur3, unixfs
from runner.content.cid import DAG_PB, Cid
from runner.content.dagpb import Link
from runner.content.directory import check_name
from runner.content.errors import ContentError
from runner.content.varint import Buffer

MURMUR3_X64_64 = 0x22
"""Multicodec of the only hash function in use."""

MAX_FANOUT = 1024
"""Slots of the widest shard that is read, the limit of boxo and js-unixfs."""

MAX_LEVELS = 8
"""Shards from the root to an entry. With the usual fanout the 64 bits of a hash end there."""

BUILD_FANOUT = 256
"""Slots of the shards that are built, as every profile of IPIP-499 has it."""

_HASH_BITS = 64


class _Shard(NamedTuple):
    """One shard: its fanout, and the link in each taken slot, its name without the prefix."""

    fanout: int
    slots: dict[int, Link]

    @property
    def bits(self) -> int:
        """Bits of the hash that choose a slot."""
        return self.fanout.bit_length() - 1


def _check_shard(links: Sequence[Link], data: unixfs.Data) -> _Shard:
    if data.type != unixfs.HAMT_SHARD:
        raise ContentError("not a shard of a directory")
    if data.hash_type != MURMUR3_X64_64:
        raise ContentError(f"a shard's hash function is {data.hash_type}, not murmur3-x64-64")
    fanout = data.fanout or 0
    # A multiple of 8, because boxo keeps the bit field in whole bytes.
    if not 8 <= fanout <= MAX_FANOUT or fanout & (fanout - 1):
        raise ContentError(f"a shard's fanout is {fanout}, not a power of two from 8 to 1024")
    field = int.from_bytes(data.data or b"", "big")
    if field.bit_length() > fanout:
        raise ContentError("a shard's bit field is wider than its fanout")
    if field.bit_count() != len(links):
        raise ContentError("a shard has not as many links as its bit field says")
    width = _prefix_width(fanout)
    slots: dict[int, Link] = {}
    for link in links:
        slot = (field & -field).bit_length() - 1
        field &= field - 1
        if link.name[:width] != f"{slot:0{width}X}":
            raise ContentError(f"a shard's link {link.name[:32]!r} is not the one of slot {slot}")
        name = link.name[width:]
        if name:
            check_name(name)
        slots[slot] = link._replace(name=name)
    return _Shard(fanout, slots)


def _prefix_width(fanout: int) -> int:
    return len(f"{fanout - 1:X}")


def _slot(name_hash: int, level: int, bits: int) -> int:
    shift = _HASH_BITS - bits * (level + 1)
    if level >= MAX_LEVELS or shift < 0:
        raise ContentError("a sharded directory has too many levels")
    return name_hash >> shift & (1 << bits) - 1


def lookup(
    links: Sequence[Link], data: unixfs.Data, name: str, load: Callable[[Cid], bytes]
) -> Link | None:
    """Find an entry by name.

    Args:
        links: The links of the root shard.
        data: Its UnixFS message.
        name: The entry's name.
        load: Returns the block of a CID; it is called for one shard a level.

    Returns:
        The entry, or None if there is no such name.

    Raises:
        ContentError: A shard on the way is malformed.
    """
    shard = _check_shard(links, data)
    fanout = shard.fanout
    name_hash = murmur3.hash_64(name.encode())
    level = 0
    while True:
        link = shard.slots.get(_slot(name_hash, level, shard.bits))
        if link is None or link.name:
            return link if link is not None and link.name == name else None
        level += 1
        shard = _read_child(link.cid, fanout, load)


def _read_child(cid: Cid, fanout: int, load: Callable[[Cid], bytes]) -> _Shard:
    # As any other codec it leads nowhere, and a pin, say, would not have what is below it.
    if cid.codec != DAG_PB:
        raise ContentError(f"shard {cid}: its codec is 0x{cid.codec:x}, not dag-pb (0x70)")
    block = load(cid)
    try:
        return _check_child(block, fanout)
    except ContentError as error:
        raise ContentError(f"shard {cid}: {error}") from None


def _check_child(block: Buffer, fanout: int) -> _Shard:
    shard = _check_shard(*unixfs.decode_node(block))
    if shard.fanout != fanout:
        raise ContentError("another fanout than the shard above")
    if not shard.slots:
        raise ContentError("empty, though it is not the root")
    return shard


def entries(
    links: Sequence[Link],
    data: unixfs.Data,
    load: Callable[[Cid], bytes],
    expect: Callable[[Iterable[Cid]], None] = lambda cids: None,
) -> Iterator[Link]:
    """Yield every entry, in the order of the hashes of the names.

    The work is bounded by the number of distinct names, however often a hostile directory links
    one shard from several places: every shard leads to an entry, and an entry is accepted only at
    the place that its own hash gives it. For the same reason no name comes twice.

    Args:
        links: The links of the root shard.
        data: Its UnixFS message.
        load: Returns the block of a CID.
        expect: Is told what will be loaded next.

    Raises:
        ContentError: A shard is malformed, or an entry is where a lookup would not find it.
    """
    shard = _check_shard(links, data)
    expect(_children(shard))
    # One iterator a level, with the bits of the hash that its shard stands for.
    stack = [(0, iter(shard.slots.items()))]
    while stack:
        prefix, slots = stack[-1]
        for slot, link in slots:
            path = prefix << shard.bits | slot
            length = shard.bits * len(stack)
            if not link.name:
                if len(stack) == MAX_LEVELS or length + shard.bits > _HASH_BITS:
                    raise ContentError("a sharded directory has too many levels")
                child = _read_child(link.cid, shard.fanout, load)
                expect(_children(child))
                stack.append((path, iter(child.slots.items())))
                break
            if murmur3.hash_64(link.name.encode()) >> _HASH_BITS - length != path:
                raise ContentError(f"the entry {link.name!r} is in the wrong shard")
            yield link
        else:
            stack.pop()


def _children(shard: _Shard) -> Iterator[Cid]:
    return (link.cid for link in shard.slots.values() if not link.name)


def build(links: Iterable[Link], put: Callable[[bytes], Cid]) -> Link:
    """Write the shards of a directory, from the leaves to the root.

    Args:
        links: The entries, in any order, each name once.
        put: Stores a dag-pb block and returns its CID.

    Returns:
        A nameless link to the root shard.

    Raises:
        ContentError: Two names have hashes that are equal in all bits that the levels can use.
    """
    return _build([(murmur3.hash_64(link.name.encode()), link) for link in links], 0, put)


def _build(hashed: list[tuple[int, Link]], level: int, put: Callable[[bytes], Cid]) -> Link:
    bits = BUILD_FANOUT.bit_length() - 1
    slots: dict[int, list[tuple[int, Link]]] = {}
    for name_hash, link in hashed:
        slots.setdefault(_slot(name_hash, level, bits), []).append((name_hash, link))
    field, links = 0, []
    width = _prefix_width(BUILD_FANOUT)
    for slot, members in slots.items():
        field |= 1 << slot
        link = members[0][1] if len(members) == 1 else _build(members, level + 1, put)
        links.append(link._replace(name=f"{slot:0{width}X}{link.name}"))
    data = unixfs.Data(
        unixfs.HAMT_SHARD,
        # As boxo writes it: big-endian, without leading zero bytes.
        data=field.to_bytes((field.bit_length() + 7) // 8, "big"),
        hash_type=MURMUR3_X64_64,
        fanout=BUILD_FANOUT,
    )
    block = dagpb.encode(links, unixfs.encode(data))
    return Link(put(block), "", len(block) + sum(link.tsize for link in links))
