"""Names of IPNS: the multihash of a public key, or the name of a domain; and paths below them.

After https://specs.ipfs.tech/ipns/ipns-record/#ipns-name. A key that is short enough is in its name
as it is (the identity hash); of others, the name has the sha2-256.
"""

from typing import NamedTuple

from runner.content import directory, multibase, multihash, protobuf
from runner.content.cid import Cid
from runner.content.errors import ContentError
from runner.content.resolver import MAX_PATH_LENGTH, ContentPath, parse_path
from runner.errors import WwError

PREFIX = "/ipns/"

# Code of the multicodec table, category ipld.
LIBP2P_KEY = 0x72

# Types of keys, as libp2p numbers them.
RSA = 0
ED25519 = 1

_KEY_TYPES = {RSA: "RSA", ED25519: "Ed25519", 2: "secp256k1", 3: "ECDSA"}
_ED25519_LENGTH = 32
_KEY_TYPE = 1 << 3 | protobuf.VARINT
_KEY_DATA = 2 << 3 | protobuf.LEN

_MAX_DOMAIN, _MAX_LABEL = 253, 63
_LABEL = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


class PublicKey(NamedTuple):
    """A public key.

    Attributes:
        type: :data:`RSA` or :data:`ED25519`.
        data: The key: 32 bytes of Ed25519; of RSA a SubjectPublicKeyInfo in DER, not read yet.
    """

    type: int
    data: bytes


class Name(NamedTuple):
    """A name that is a key's.

    Made by :meth:`parse`, which holds the rules.

    Attributes:
        multihash: The multihash of the serialized public key: sha2-256, or identity.
    """

    multihash: bytes

    @classmethod
    def parse(cls, text: str) -> "Name":
        """Read a name: a CID of the codec libp2p-key, or a bare multihash in base58btc.

        Raises:
            ContentError: The text is neither, or the key in it is not one that can be used here.
        """
        if text.startswith(("1", "Qm")):
            # No CID starts like this, but for version 0, which a name could be taken for.
            hashed = multibase.decode_base58(text)
        else:
            cid = Cid.parse(text)
            if cid.codec != LIBP2P_KEY:
                raise ContentError(
                    f"the CID has the codec 0x{cid.codec:x}, and that of a key is 0x72"
                )
            hashed = cid.multihash
        code, digest = multihash.decode(hashed)
        if code == multihash.IDENTITY:
            decode_key(digest)
        elif code != multihash.SHA2_256:
            raise ContentError("a name is a key or the sha2-256 of one")
        return cls(hashed)

    @property
    def inlined(self) -> bytes | None:
        """The serialized key, if the name has it."""
        code, digest = multihash.decode(self.multihash)
        return digest if code == multihash.IDENTITY else None

    def __str__(self) -> str:
        """Return the usual text: a CID in base36."""
        return multibase.encode("k", bytes(Cid(1, LIBP2P_KEY, self.multihash)))


class NamePath(NamedTuple):
    """A path that begins with a name.

    Attributes:
        name: The name: a key's, or a domain as text.
        names: The entries to walk through below what the name stands for.
    """

    name: Name | str
    names: tuple[str, ...]

    def __str__(self) -> str:
        """Return the path as text."""
        return PREFIX + "/".join((str(self.name), *self.names))


def decode_key(data: bytes) -> PublicKey:
    """Read a serialized public key, which has one form (the peer ids of libp2p rely on it).

    Raises:
        ContentError: It is not one, or of a type that is not used here.
    """
    fields = list(protobuf.fields(memoryview(data)))
    if [tag for tag, _, _ in fields] != [_KEY_TYPE, _KEY_DATA]:
        raise ContentError("a public key is not its type and then its data")
    key = PublicKey(fields[0][1], bytes(fields[1][2]))
    if key.type not in (RSA, ED25519):
        name = _KEY_TYPES.get(key.type, str(key.type))
        raise ContentError(f"keys of the type {name} are not read, only Ed25519 and RSA")
    if key.type == ED25519 and len(key.data) != _ED25519_LENGTH:
        raise ContentError(f"an Ed25519 key has {len(key.data)} bytes, not {_ED25519_LENGTH}")
    return key


def parse(text: str) -> NamePath | ContentPath:
    """Read a path that begins with /ipns/ or /ipfs/; one slash at the end is allowed.

    Raises:
        ContentError: The text is not such a path.
    """
    if not text.startswith(PREFIX):
        try:
            return parse_path(text)
        except WwError as error:
            raise ContentError(error.what) from None
    if len(_encode(text)) > MAX_PATH_LENGTH:
        raise ContentError(f"longer than {MAX_PATH_LENGTH} bytes")
    first, *names = text.removeprefix(PREFIX).split("/")
    if names and not names[-1]:
        names.pop()
    for name in names:
        directory.check_name(name)
    if "." in first:
        return NamePath(_parse_domain(first), tuple(names))
    return NamePath(Name.parse(first), tuple(names))


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ContentError("not UTF-8") from None


def _parse_domain(text: str) -> str:
    """Read the name of a domain as it is in the DNS: international names as their xn-- form."""
    domain = text.lower()
    labels = domain.split(".")
    if (
        len(domain) > _MAX_DOMAIN
        or not all(0 < len(label) <= _MAX_LABEL for label in labels)
        or not all(_LABEL.issuperset(label) for label in labels)
        or any(label.startswith("-") for label in labels)
    ):
        raise ContentError("neither a key nor a domain")
    return domain
