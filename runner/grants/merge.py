"""From several sources of requests to one list: aliases, decorations and mappings applied.

Nothing here depends on the order of different flags. Requests are taken in a fixed order of their
sources: ``--fd``, ``--fdctl``, ``--use-systemd-fds``, ``--fd-from``; within one, as given.
"""

from __future__ import annotations

from runner.errors import EXIT_USAGE, WwError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from runner.grants.flags import Decoration, FdMap
    from runner.grants.model import Request


def merge(
    requests: Iterable[Request],
    decorations: Sequence[Decoration] = (),
    mappings: Sequence[FdMap] = (),
    aliases: Mapping[str, str] | None = None,
) -> list[Request]:
    """Apply what flags say about grants that other sources bring.

    Args:
        requests: From all sources, in their order.
        decorations: What ``--fd NAME,key=value`` adds; it replaces what the source said.
        mappings: What ``--fd-map`` says; applied last.
        aliases: Other names for some requests, which only flags use.

    Raises:
        WwError: With code 2 if a flag names what nobody brings, or two flags say the same of
            one grant.
    """
    merged = list(requests)
    positions = {request.name: index for index, request in enumerate(merged)}
    for alias, name in (aliases or {}).items():
        if alias in positions:
            other = merged[positions[alias]]
            raise WwError(
                other.origin,
                f"the name '{alias}' is also an alias of '{name}'",
                hint="rename one of them",
                code=EXIT_USAGE,
            )
        positions[alias] = positions[name]
    said: dict[tuple[int, str], str] = {}
    for decoration in decorations:
        index = _find(positions, decoration.name, decoration.origin)
        for key in decoration.options:
            _say(said, index, key, decoration.origin, decoration.name)
        merged[index] = merged[index]._replace(**decoration.options)
    for mapping in mappings:
        index = _find(positions, mapping.name, mapping.origin)
        _say(said, index, "--fd-map", mapping.origin, mapping.name)
        merged[index] = merged[index]._replace(target=mapping.target)
    return merged


def _find(positions: Mapping[str, int], name: str, origin: str) -> int:
    if name not in positions:
        known = ", ".join(positions) or "there are none"
        raise WwError(
            origin,
            f"nothing brings a descriptor named '{name}'",
            hint=f"write --fd {name}=NUM; the names are: {known}",
            code=EXIT_USAGE,
        )
    return positions[name]


def _say(said: dict[tuple[int, str], str], index: int, key: str, origin: str, name: str) -> None:
    """Hold that one thing is said of a grant once."""
    if (index, key) in said:
        raise WwError(
            origin,
            f"{key} of '{name}' is already given by {said[index, key]}",
            hint="drop one of them",
            code=EXIT_USAGE,
        )
    said[index, key] = origin
