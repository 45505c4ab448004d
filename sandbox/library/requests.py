"""Offers as requests for grants: held against the rules of grants before anything is opened."""

from collections.abc import Iterable, Sequence
from typing import Final, get_args

from sandbox import granting
from sandbox.errors import GrantError
from sandbox.granting import GrantRequest
from sandbox.grants import Mode
from sandbox.library.offer import Offer
from sandbox.library.options import check_type

_MODES: Final = (None, *get_args(Mode))


def check_offers(grants: Iterable[Offer]) -> tuple[Offer, ...]:
    """Return what is offered, if all of it are offers; what is in them is not looked at.

    Raises:
        TypeError: If they are one offer, or not all of them are.
    """
    if isinstance(grants, Offer):
        raise TypeError("grants are many offers, and this is one: write [offer]")
    offers = tuple(grants)
    for offer in offers:
        check_type("a grant", offer, Offer)
    return offers


def make_requests(
    offers: Sequence[Offer], sources: Sequence[int | None], limit: int
) -> list[GrantRequest]:
    """Return offers as requests that keep the rules of grants.

    Args:
        offers: The offers.
        sources: The descriptor that each offers; None for one that is yet to be opened, which is
            granted by that offer only.
        limit: The lowest number that no cell can have a descriptor at.

    Raises:
        GrantError: Of usage, if they do not, or something of one is of another type than it has to
            be.
    """
    requests = [
        _request(offer, -1 - at if source is None else source)
        for at, (offer, source) in enumerate(zip(offers, sources, strict=True))
    ]
    granting.check_requests(requests, limit)
    return requests


def origin(offer: Offer) -> str:
    """Return what an offer is called in errors."""
    return f"grant {offer.name!r}"


def _request(offer: Offer, source: int) -> GrantRequest:
    _check_types(offer)
    if offer.mode not in _MODES:
        raise GrantError(origin(offer), f"mode={offer.mode} is none of r, w and rw", usage=True)
    guest = offer.guest
    if guest is not None:
        try:
            guest = granting.guest_path(guest)
        except ValueError as error:
            raise GrantError(
                origin(offer), f"'{guest}' cannot be a path in the cell: {error}", usage=True
            ) from None
    return GrantRequest(
        name=offer.name,
        source=source,
        origin=origin(offer),
        mode=offer.mode,
        type=offer.type,
        target=offer.target,
        move=offer.move,
        cloexec=offer.cloexec,
        pathlink=offer.pathlink,
        guest=guest,
    )


def _check_types(offer: Offer) -> None:
    for part, value, kinds in (
        ("name", offer.name, str),
        ("guest", offer.guest, str | None),
        ("type", offer.type, str | None),
        ("target", offer.target, int | None),
        ("move", offer.move, bool),
        ("cloexec", offer.cloexec, bool),
        ("pathlink", offer.pathlink, bool),
    ):
        if not isinstance(value, kinds) or (part == "target" and isinstance(value, bool)):
            raise GrantError(origin(offer), f"{part} cannot be {value!r}", usage=True)
