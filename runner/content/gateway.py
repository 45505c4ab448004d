"""A trustless gateway: blocks, CARs and IPNS records, and nothing that would have to be believed.

After https://specs.ipfs.tech/http-gateways/trustless-gateway/.
"""

from runner.content.addresses import Endpoint
from runner.content.blockstore import MAX_BLOCK_SIZE
from runner.content.cid import Cid
from runner.content.http import Body, Client, Limits, Response
from runner.content.proxies import Proxies
from runner.content.resolver import ContentPath
from runner.content.source import MAX_RECORD_SIZE, Absent, Source, SourceError, Watch

_RAW = "application/vnd.ipld.raw"
_CAR = "application/vnd.ipld.car"
_RECORD = "application/vnd.ipfs.ipns-record"
_CAR_AS_WANTED = f"{_CAR}; version=1; order=dfs; dups=n"

_OK, _NOT_FOUND = 200, 404
# Not found, gone, unavailable for legal reasons, and looked for in vain.
_ABSENT = (404, 410, 451, 504)
_REFUSED = (401, 407)
# Bad request, not found, not acceptable, wrong media type, not implemented: what one may say that
# has no CARs.
_NO_CAR = (400, 404, 406, 415, 501)


class Gateway(Source):
    """One gateway."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        watch: Watch,
        limits: Limits | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        """Describe it; no connection is made yet.

        Args:
            endpoint: Its URL.
            watch: Is told of the bytes that arrive.
            limits: How long to wait.
            proxies: Where to find proxies.
        """
        self.name = f"gateway {endpoint.text}"
        self._client = Client(endpoint, watch=watch, limits=limits, proxies=proxies, follows=True)
        self._has_cars = True

    def get(self, cid: Cid) -> bytes:
        """Return a block; see :meth:`Source.get`."""
        return self._ask(f"/ipfs/{cid}?format=raw", _RAW).read(MAX_BLOCK_SIZE)

    def car(self, path: ContentPath, *, everything: bool = False) -> Body | None:
        """Ask for all that a path needs; see :meth:`Source.car`."""
        if not self._has_cars:
            return None
        from urllib.parse import quote

        names = "".join(f"/{quote(name, safe='')}" for name in path.names)
        scope = "all" if everything else "entity"
        query = f"format=car&dag-scope={scope}&car-order=dfs&car-dups=n"
        try:
            response = self._ask(f"/ipfs/{path.root}{names}?{query}", _CAR, _CAR_AS_WANTED)
        except _NoCar as error:
            self._has_cars = error.status == _NOT_FOUND
            return None
        return response.stream()

    def ipns(self, name: str) -> bytes | None:
        """Return an IPNS record; see :meth:`Source.ipns`."""
        return self._ask(f"/ipns/{name}?format=ipns-record", _RECORD).read(MAX_RECORD_SIZE)

    def close(self) -> None:
        """End all requests; see :meth:`Source.close`."""
        self._client.close()

    def _ask(self, target: str, media_type: str, accept: str = "") -> Response:
        """Make a request, and return the answer if it is of the kind that was asked for.

        Raises:
            Absent: The gateway does not have it.
            _NoCar: It has no CARs.
            SourceError: It cannot tell, or answers with something else.
        """
        response = self._client.request("GET", target, accept or media_type)
        if response.status == _OK:
            if response.media_type == media_type:
                return response
            kind = response.media_type[:80]
            response.close()
            if media_type == _CAR and kind == _RAW:
                raise _NoCar(f"it answered with {kind}", response.status)
            raise SourceError(f"it answered with {kind}, not with {media_type}", gone=True)
        response.discard()
        text = f"it answered {response.status}"
        if media_type == _CAR and response.status in _NO_CAR:
            raise _NoCar(text, response.status)
        if response.status in _ABSENT and media_type != _CAR:
            raise Absent(f"does not have it ({text})")
        raise SourceError(text, gone=response.status in _REFUSED)


class _NoCar(SourceError):
    """A gateway that has no CARs, or not this one.

    Attributes:
        status: The status that it answered with.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status
