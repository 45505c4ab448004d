"""MurmurHash3 x64, seed 0: the hash that spreads names over the shards of a directory.

By Austin Appleby, public domain (https://github.com/aappleby/smhasher). Not a cryptographic hash,
and nothing here needs one: blocks are verified by their CIDs.
"""

_MASK = (1 << 64) - 1
_C1 = 0x87C37B91114253D5
_C2 = 0x4CF5AD432745937F


def hash_64(data: bytes) -> int:
    """Return the first 64 of the 128 bits, which multicodec calls murmur3-x64-64."""
    h1 = h2 = 0
    whole = len(data) & ~15
    for offset in range(0, whole, 16):
        k1 = int.from_bytes(data[offset : offset + 8], "little")
        k2 = int.from_bytes(data[offset + 8 : offset + 16], "little")
        h1 = (_rotate(h1 ^ _scramble_1(k1), 27) + h2) * 5 + 0x52DCE729 & _MASK
        h2 = (_rotate(h2 ^ _scramble_2(k2), 31) + h1) * 5 + 0x38495AB5 & _MASK
    # A missing word of the tail is 0, which the scrambling leaves 0.
    h1 ^= _scramble_1(int.from_bytes(data[whole : whole + 8], "little"))
    h2 ^= _scramble_2(int.from_bytes(data[whole + 8 :], "little"))
    h1 ^= len(data)
    h2 ^= len(data)
    h1 = h1 + h2 & _MASK
    h2 = h2 + h1 & _MASK
    return _finish(h1) + _finish(h2) & _MASK


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & _MASK


def _scramble_1(word: int) -> int:
    return _rotate(word * _C1 & _MASK, 31) * _C2 & _MASK


def _scramble_2(word: int) -> int:
    return _rotate(word * _C2 & _MASK, 33) * _C1 & _MASK


def _finish(word: int) -> int:
    word = (word ^ word >> 33) * 0xFF51AFD7ED558CCD & _MASK
    word = (word ^ word >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    return word ^ word >> 33
