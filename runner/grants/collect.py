"""Every source of grants, read and frozen into one plan.

This is what ``ww run`` does with its flags, and what a program may do with the same values::

    plan = collect(Sources(fds=("db=3,mode=r",)), capture(), os.environ)
"""

from __future__ import annotations

import os

from runner.errors import EXIT_GRANT, EXIT_USAGE, WwError
from runner.grants.model import Request
from runner.grants.plan import build_plan
from sandbox import Record, granting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping, Set
    from typing import Final

    from runner.grants.flags import Decoration, FdMap
    from runner.grants.plan import GrantPlan
    from runner.inherited import Inherited

_STDIN: Final = "-"


class Sources(Record):
    """Where grants come from: the values of the flags of ``ww run``.

    Attributes:
        fds: Of ``--fd``.
        maps: Of ``--fd-map``.
        fdctls: Of ``--fdctl``.
        systemd: The prefix of ``--use-systemd-fds``; None without the flag.
        tables: Of ``--fd-from``.
        table_env: Of ``--table-env``: the variables that tables may see.
        stdio: Whether 0, 1 and 2 pass through.
        dirs: Of ``--dir``.
        scratch: Whether ``--scratch`` gives the cell a writable /tmp.
        ipfs: Whether ``--with-ipfs`` gives it /ipfs.
    """

    fds: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    fdctls: tuple[str, ...] = ()
    systemd: str | None = None
    tables: tuple[str, ...] = ()
    table_env: tuple[str, ...] = ()
    stdio: bool = True
    dirs: tuple[str, ...] = ()
    scratch: bool = False
    ipfs: bool = False


def collect(sources: Sources, inherited: Inherited, environ: MutableMapping[str, str]) -> GrantPlan:
    """Read all sources, merge them, and freeze the plan.

    What can be checked without waiting comes first, and a peer that hands over descriptors last.
    A table on standard input leaves /dev/null there. The directories of ``--dir``, and what a peer
    has handed over, are open in this process afterwards, close-on-exec; after an error they are
    closed.

    Args:
        sources: What the flags say.
        inherited: What ww was started with.
        environ: The environment of this process; systemd's variables are removed from it.

    Raises:
        WwError: With code 2 or 65, as each source says.
    """
    opened: set[int] = set()
    try:
        return _collect(sources, inherited, environ, opened)
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise


def _collect(
    sources: Sources, inherited: Inherited, environ: MutableMapping[str, str], opened: set[int]
) -> GrantPlan:
    """Do what :func:`collect` does, and note what has been opened for it."""
    requests: list[Request] = []
    decorations: list[Decoration] = []
    mappings: list[FdMap] = []
    if sources.fds or sources.maps:
        from runner.grants.flags import parse_fds, parse_maps

        requests, decorations = parse_fds(sources.fds)
        mappings = parse_maps(sources.maps)
    directories: list[Request] = []
    _check_tables(sources.tables)
    if sources.dirs:
        from runner.grants.directories import open_directories, parse_directories

        directories = open_directories(parse_directories(sources.dirs))
        opened.update(request.source for request in directories)
    aliases: dict[str, str] = {}
    activated: tuple[Request, ...] = ()
    if sources.systemd is not None:
        from runner.grants.systemd import take_listen_fds

        activated, aliases = take_listen_fds(environ, inherited, sources.systemd)
    table_requests: list[Request] = []
    validators = []
    if sources.tables:
        from runner.grants.tables import read_table

        variables = {name: environ[name] for name in sources.table_env if name in environ}
        for table in sources.tables:
            read = read_table(*_read(table), variables)
            table_requests += read.requests
            validators += read.validators
    handed: list[Request] = []
    inherited_by_flag: list[Request] = []
    if sources.fdctls:
        from runner.grants.handoff import parse_fdctl, receive

        for channel in [parse_fdctl(v, f"--fdctl #{i}") for i, v in enumerate(sources.fdctls, 1)]:
            if isinstance(channel, Request):
                handed.append(channel)
                inherited_by_flag.append(channel)
                continue
            got = receive(channel)
            handed += got.requests
            opened |= got.sources
    named = [*requests, *activated, *table_requests, *inherited_by_flag]
    _hold_apart(named, opened)
    merged = [*requests, *directories, *handed, *activated, *table_requests]
    if decorations or mappings or aliases:
        from runner.grants.merge import merge

        merged = merge(merged, decorations, mappings, aliases)
    plan = build_plan(
        merged,
        inherited.with_received(frozenset(opened)),
        stdio=sources.stdio,
        scratch=sources.scratch,
        ipfs=sources.ipfs,
    )
    if validators:
        from runner.grants.tables import Facts

        for entry in plan.entries:
            grant = entry.grant
            if grant.name is None or entry.source is None:
                continue
            facts = Facts(grant.name, entry.source, grant.mode, grant.type, grant.target)
            for validator in validators:
                validator.check(facts, entry.origin)
    return plan


def _hold_apart(named: Iterable[Request], opened: Set[int]) -> None:
    """Hold that nobody names by its number what ww has opened or received since.

    Raises:
        WwError: With code 65: what was not inherited is not open, as far as flags can see.
    """
    for request in named:
        if request.source in opened:
            raise WwError(
                request.origin,
                f"fd {request.source} is not open",
                hint=f"open it for ww, in a shell with {request.source}<FILE",
                code=EXIT_GRANT,
            )


def check_table(
    table: str, table_env: tuple[str, ...], environ: Mapping[str, str], *, as_json: bool
) -> str:
    """Read a table and hold it against all rules that need no descriptor.

    Args:
        table: ``@FILE``, ``FILE`` or ``-``.
        table_env: The variables that it may see.
        environ: The environment of this process.
        as_json: Return a JSON array of its grants, in place of a table.

    Raises:
        WwError: With code 2, where it is wrong.
    """
    from runner.grants.plan import check_requests
    from runner.grants.tables import print_table, read_table

    variables = {name: environ[name] for name in table_env if name in environ}
    requests = read_table(*_read(table), variables).requests
    check_requests(requests, granting.target_limit(), stdio=False)
    if not as_json:
        return print_table(requests).rstrip()
    import json

    grants = [request._asdict() for request in requests]
    for grant in grants:
        del grant["guest"], grant["called"]  # no keys of a table
    return json.dumps(grants, indent=2)


def _check_tables(tables: tuple[str, ...]) -> None:
    if tables.count(_STDIN) > 1:
        raise WwError(
            "--fd-from",
            "standard input is given twice",
            hint="it can be read once; give the other table as @FILE",
            code=EXIT_USAGE,
        )


def _read(table: str) -> tuple[bytes, str]:
    """Return a table's bytes, at most one more than there may be, and its name for errors."""
    from runner.grants.reader import MAX_BYTES

    path = "<stdin>" if table == _STDIN else table.removeprefix("@")
    try:
        if table == _STDIN:
            data = _read_all(0, MAX_BYTES + 1)
            null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(null, 0, inheritable=False)
            os.close(null)
            return data, path
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            return _read_all(fd, MAX_BYTES + 1), path
        finally:
            os.close(fd)
    except OSError as error:
        raise WwError(
            path, f"the table cannot be read: {error.strerror}", code=EXIT_USAGE
        ) from None


def _read_all(fd: int, most: int) -> bytes:
    data = b""
    while len(data) < most:
        try:
            more = os.read(fd, most - len(data))
        except BlockingIOError:
            _wait(fd)
            continue
        if not more:
            break
        data += more
    return data


def _wait(fd: int) -> None:
    """Wait until there is something to read. Whoever shares a pipe may have set O_NONBLOCK."""
    import select

    something = select.poll()
    something.register(fd, select.POLLIN)
    something.poll()
