"""From ``/ipns/NAME`` to an ``/ipfs/`` path, believing nobody but the owner of the name's key.

A source is asked for the signed record of a name, and what it sends is verified here. The latest
record that was seen of each name is kept in ``HOME/ipns/NAME``, exactly as it was signed, for two
reasons: no source can bring an older one again, and for as long as the record's owner allows,
nobody needs to be asked. That file's time of modification is when a source has last brought it.

A domain has no key. What its DNSLink says is taken only if the user wants that, from whoever the
user has named for it, and a line says that nothing has verified it.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from runner.content import ipns_name, ipns_record
from runner.content.errors import ContentError
from runner.content.ipns_name import PREFIX, Name, NamePath
from runner.content.ipns_record import Record
from runner.content.replacing import replacing
from runner.content.resolver import MAX_PATH_LENGTH, ContentPath
from runner.errors import EXIT_FAILURE, EXIT_NOT_FOUND, EXIT_USAGE, WwError, printable

if TYPE_CHECKING:
    from runner.content.source import Source

MAX_LEVELS = 4
"""Names on the way to content: a record may lead to another name."""

MAX_TTL = 24 * 3600 * 10**9
"""Nanoseconds that a record is used at most before a source is asked again. Old publishers have
written the whole validity there, up to a hundred years."""

Answer = TypeVar("Answer")
Clock = Callable[[], int]


class Sources(Protocol):
    """Whom to ask; :class:`runner.content.fetch.Fetched` is one."""

    def ask(self, question: "Callable[[Source], Answer | None]") -> Iterator[tuple[str, Answer]]:
        """Ask each source something, in their order.

        Args:
            question: Asks a source. What it raises means that the source cannot tell.

        Yields:
            The name and the answer of each source that has one.
        """


def resolve(
    address: str,
    sources: Sources,
    home: str,
    *,
    dnslink: bool,
    offline: bool,
    tell: Callable[[str], None],
    clock: Clock = time.time_ns,
) -> str:
    """Find out what a name stands for.

    Args:
        address: ``/ipns/NAME`` or ``/ipns/NAME/path``.
        sources: Whom to ask for records.
        home: The directory of the store, where records are remembered.
        dnslink: Whether the user wants the unverified DNSLink of a domain to be followed.
        offline: Whether to use the remembered record for as long as it is valid, and ask nobody.
        tell: Shows a line to the user. It is always told what the address was resolved to.
        clock: Returns the time, in nanoseconds since 1970.

    Returns:
        ``/ipfs/CID`` or ``/ipfs/CID/path``.

    Raises:
        WwError: The address is malformed, or a domain where that is not wanted (code EXIT_USAGE);
            no source has a record (EXIT_NOT_FOUND); every record is refused (EXIT_FAILURE).
    """
    if not address.startswith(PREFIX):
        raise _malformed(address, f"it does not begin with {PREFIX}")
    try:
        target = ipns_name.parse(address)
    except ContentError as error:
        raise _malformed(address, str(error)) from None

    def say(text: str) -> None:
        tell(printable(text))

    way = _Way(sources, home, dnslink=dnslink, offline=offline, tell=say, clock=clock)
    seen: list[Name | str] = []
    below: tuple[str, ...] = ()
    while isinstance(target, NamePath):
        name, below = target.name, target.names + below
        if name in seen:
            raise WwError(address, f"its records lead in a circle, to {PREFIX}{name} again")
        if len(seen) == MAX_LEVELS:
            raise WwError(address, f"there are more than {MAX_LEVELS} names on the way to content")
        seen.append(name)
        target = way.domain(name) if isinstance(name, str) else way.key(name)
        if isinstance(target, NamePath):
            say(f"resolved {PREFIX}{name} -> {target}")
    path = str(ContentPath(target.root, target.names + below))
    if len(path.encode()) > MAX_PATH_LENGTH:
        raise WwError(address, f"it leads to a path of more than {MAX_PATH_LENGTH} bytes")
    say(f"resolved {address} -> {path}")
    return path


def _malformed(address: str, what: str) -> WwError:
    return WwError(
        address[:MAX_PATH_LENGTH],
        f"not a valid path: {what}",
        hint="write /ipns/NAME or /ipns/NAME/path, where NAME is a key such as k51...",
        code=EXIT_USAGE,
    )


class _Way:
    """How one name is resolved; the arguments are those of :func:`resolve`."""

    def __init__(
        self,
        sources: Sources,
        home: str,
        *,
        dnslink: bool,
        offline: bool,
        tell: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._sources = sources
        self._home = home
        self._dnslink = dnslink
        self._offline = offline
        self._tell = tell
        self._clock = clock
        self._reasons: dict[str, str] = {}  # name of a source -> why it has nothing to say
        self._asked: list[str] = []

    def key(self, name: Name) -> ContentPath | NamePath:
        """Return what the owner of a key says that its name stands for."""
        memory = Memory(self._home, name)
        kept = memory.read()
        now = self._clock()
        if self._offline:
            return self._remembered(name, kept, now).target
        if kept is not None and kept.is_fresh(now):
            return kept.record.target
        ipns_record.check_signatures_can_be_verified()
        refused: dict[str, str] = {}
        for source, answer in self._ask(lambda source: source.ipns(str(name))):
            try:
                record = memory.keep(_check(name, answer, self._clock()), answer, self._clock())
            except ContentError as error:
                refused[source] = str(error)
                continue
            for liar, why in refused.items():
                self._tell(f"{liar}: its record of {PREFIX}{name} is refused: {why}")
            return record.target
        hint = ""
        if kept is not None and kept.record.validity > now:
            hint = f"--offline uses the remembered record, {_describe(kept.record)}"
        raise self._nothing(name, "its record", refused, hint)

    def domain(self, name: str) -> ContentPath | NamePath:
        """Return what somebody says that a domain's DNSLink is."""
        where = f"{PREFIX}{name}"
        if not self._dnslink:
            raise WwError(
                where,
                "it is a domain, and nothing can verify what its DNSLink says",
                hint="use the name of a key, or --dnslink to take the word of the IPFS node",
                code=EXIT_USAGE,
            )
        if self._offline:
            raise WwError(
                where,
                "a DNSLink is not remembered, and --offline asks nobody",
                code=EXIT_NOT_FOUND,
            )
        refused: dict[str, str] = {}
        for source, answer in self._ask(lambda source: _dnslink(source, name)):
            try:
                target = ipns_name.parse(answer)
            except ContentError as error:
                refused[source] = f"it is not a path: {error}"
                continue
            self._tell(f"{where}: a DNSLink is not verified; this is what {source} says")
            return target
        raise self._nothing(name, "its DNSLink", refused, "--ipfs names an IPFS node to ask")

    def _remembered(self, name: Name, kept: "Kept | None", now: int) -> Record:
        where = f"{PREFIX}{name}"
        if kept is None:
            raise WwError(
                where, "no record is remembered, and --offline asks nobody", code=EXIT_NOT_FOUND
            )
        if kept.record.validity <= now:
            raise WwError(
                where,
                f"the remembered record has expired at {_show(kept.record.validity)}",
                hint="--offline asks nobody for a newer one",
            )
        since = _show(kept.confirmed)
        self._tell(
            f"{where}: --offline: the record remembered since {since}, {_describe(kept.record)}"
        )
        return kept.record

    def _ask(self, question: "Callable[[Source], Answer | None]") -> Iterator[tuple[str, Answer]]:
        """Ask the sources, and remember what those say that have no answer."""
        self._reasons, self._asked = {}, []

        def ask(source: "Source") -> Answer | None:
            self._asked.append(source.name)
            try:
                return question(source)
            except Exception as error:  # a source may be anybody's code
                self._reasons[source.name] = str(error) or type(error).__name__
                raise

        return self._sources.ask(ask)

    def _nothing(self, name: Name | str, what: str, refused: dict[str, str], hint: str) -> WwError:
        where = f"{PREFIX}{name}"
        if not self._asked:
            return WwError(
                where,
                f"there is nobody to ask for {what}",
                hint=hint or "name an IPFS node with --ipfs, or a gateway with --gateway",
                code=EXIT_NOT_FOUND,
            )
        said = "; ".join(
            f"{source}: " + (refused.get(source) or self._reasons.get(source) or "does not have it")
            for source in dict.fromkeys(self._asked)
        )
        return WwError(
            where,
            f"{what} is refused: {said}" if refused else f"nobody has {what}: {said}",
            hint=hint,
            code=EXIT_FAILURE if refused else EXIT_NOT_FOUND,
        )


def _dnslink(source: "Source", name: str) -> str | None:
    """Ask a source for a DNSLink, if it is the user who wants this one to be believed."""
    if not source.named:
        raise ValueError("nobody has named it, so it is not believed")
    return source.dnslink(name)


def _check(name: Name, data: bytes, now: int) -> Record:
    """Return the record of a name, verified and not expired.

    Raises:
        ContentError: It is something else.
    """
    record = ipns_record.decode(data)
    ipns_record.verify(name, record)
    if record.validity <= now:
        raise ContentError(f"it has expired at {_show(record.validity)}")
    return record


def _describe(record: Record) -> str:
    return f"of sequence {record.sequence}, valid until {_show(record.validity)}"


def _show(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // 10**9))


class Kept(NamedTuple):
    """A record that is remembered, and verified.

    Attributes:
        record: The record; it may have expired.
        raw: The same as bytes.
        confirmed: When a source has last brought it, in nanoseconds since 1970.
    """

    record: Record
    raw: bytes
    confirmed: int

    def is_fresh(self, now: int) -> bool:
        """Tell whether nobody needs to be asked yet."""
        # What was confirmed in the future was confirmed by another clock.
        age = now - self.confirmed
        return 0 <= age < min(self.record.ttl, MAX_TTL) and now < self.record.validity


class Memory:
    """The latest record of one name that this user has seen."""

    def __init__(self, home: str, name: Name) -> None:
        self._home = home
        self._name = name
        self._directory = os.path.join(home, "ipns")
        self._path = os.path.join(self._directory, str(name))

    def read(self) -> Kept | None:
        """Return what is remembered.

        Raises:
            WwError: It cannot be read, or is damaged. To go on without it would be to accept any
                older record.
        """
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                raw = os.read(file, ipns_record.MAX_SIZE + 1)
                confirmed = os.fstat(file).st_mtime_ns
            finally:
                os.close(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed("cannot be read", error) from None
        try:
            record = ipns_record.decode(raw)
            ipns_record.verify(self._name, record)
        except ContentError as error:
            raise WwError(
                self._path,
                f"the record that is remembered is damaged: {error}",
                hint="remove the file; until then, an older record could not be told from a newer",
            ) from None
        return Kept(record, raw, confirmed)

    def keep(self, record: Record, raw: bytes, now: int) -> Record:
        """Remember a record that a source has brought, unless a newer one was seen before.

        Args:
            record: The record, verified.
            raw: The same as bytes.
            now: The time.

        Returns:
            The record to use: this one, or one that says the same and is valid for longer.

        Raises:
            ContentError: It is older than the one that is remembered.
            WwError: It cannot be written.
        """
        try:
            with self._locked():
                kept = self.read()
                if kept is not None:
                    _refuse_older(record, kept.record)
                    if _says_no_less(kept.record, record):
                        os.utime(self._path, ns=(now, now))
                        return kept.record
                self._write(raw, now)
        except OSError as error:
            raise self._failed("cannot be written", error) from None
        return record

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from writing here."""
        for path in (self._home, self._directory):
            os.makedirs(path, mode=0o700, exist_ok=True)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)

    def _write(self, raw: bytes, now: int) -> None:
        # Only the holder of the lock uses this name; what a dead process has left is overwritten.
        with replacing(self._path, 0o600, os.path.join(self._directory, ".new")) as file:
            file.write(raw)
            file.flush()
            os.utime(file.fileno(), ns=(now, now))

    def _failed(self, what: str, error: OSError) -> WwError:
        return WwError(
            self._path,
            f"the record to remember {what}: {error.strerror or error}",
            hint="the store is in $WW_HOME, else $XDG_DATA_HOME/ww, else ~/.local/share/ww",
        )


def _refuse_older(record: Record, kept: Record) -> None:
    """Raise an error for a record that is older than one that was seen before.

    A publisher that only prolongs a record leaves its sequence as it was. So of two records with
    one sequence, the one that expires first is older, but no matter if it says the same.

    Raises:
        ContentError: It is.
    """
    if record.sequence < kept.sequence:
        raise ContentError(
            f"it is older, of sequence {record.sequence}, than one that was seen before, of "
            f"sequence {kept.sequence}"
        )
    if (
        record.sequence == kept.sequence
        and record.validity < kept.validity
        and record.target != kept.target
    ):
        raise ContentError(
            f"it is older, valid until {_show(record.validity)}, than one that was seen before, "
            f"valid until {_show(kept.validity)}, both of sequence {kept.sequence}"
        )


def _says_no_less(kept: Record, record: Record) -> bool:
    """Tell whether there is no use in a record beside the one that is remembered."""
    return (
        kept.sequence == record.sequence
        and kept.validity >= record.validity
        and kept.target == record.target
    )
