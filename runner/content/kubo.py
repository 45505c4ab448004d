"""An IPFS node that is asked over its RPC (https://docs.ipfs.tech/reference/kubo/rpc/).

Kubo's, and what speaks the same: js-ipfs, for one. No version is asked for; what a node does not
know it answers with an error, and then it is asked in another way.
"""

import json
from contextlib import suppress

from runner.content.addresses import Endpoint
from runner.content.blockstore import MAX_BLOCK_SIZE
from runner.content.cid import Cid
from runner.content.http import Body, Client, Limits, Response
from runner.content.resolver import ContentPath
from runner.content.source import MAX_RECORD_SIZE, Absent, Source, SourceError, Watch

_API = "/api/v0/"
_OK, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 200, 401, 403, 404
_MOST_JSON = 64 << 10
_LONGEST_MESSAGE = 200
_VALUE = 5  # the kind of event of routing/get that has the record
# What nodes say of a block that they do not have, and were not able to find in time.
_ABSENT = ("not found", "could not find", "no such", "deadline exceeded", "timeout", "timed out")


class Rpc(Source):
    """One node."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        watch: Watch,
        limits: Limits | None = None,
        named: bool = True,
        insecure: bool = False,
    ) -> None:
        """Describe it; no connection is made yet.

        Args:
            endpoint: Where its RPC listens.
            watch: Is told of the bytes that arrive.
            limits: How long to wait.
            named: Whether the user has named it.
            insecure: Whether it may be talked to over a network without TLS.
        """
        self.name = f"node {endpoint.text}"
        self.named = named
        # Never through a proxy: whoever controls a node's RPC controls the node.
        self._client = Client(endpoint, watch=watch, limits=limits, private=not insecure)
        # So that the node gives up shortly before it is given up.
        self._patience = f"{max(1, int(self._client.limits.idle) - 2)}s"

    def get(self, cid: Cid) -> bytes:
        """Return a block; see :meth:`Source.get`."""
        response = self._ask("block/get", arg=str(cid), timeout=self._patience)
        return response.read(MAX_BLOCK_SIZE)

    def car(self, path: ContentPath, *, everything: bool = False) -> Body | None:
        """Export all that is below a block; see :meth:`Source.car`.

        A path is not for all nodes, so below its root it is walked block by block.
        """
        if path.names:
            return None
        with suppress(_Unknown):
            # An export of what cannot be found goes on for ever, without a word.
            self._ask("block/stat", arg=str(path.root), timeout=self._patience).discard()
        try:
            return self._ask("dag/export", arg=str(path.root), progress="false").stream()
        except _Unknown:
            return None

    def ipns(self, name: str) -> bytes | None:
        """Return an IPNS record; see :meth:`Source.ipns`."""
        try:
            response = self._ask("name/get", arg=name, timeout=self._patience)
        except _Unknown:
            return self._routed(name)
        return response.read(MAX_RECORD_SIZE)

    def _routed(self, name: str) -> bytes | None:
        """Return an IPNS record from a node that has no command for that alone."""
        import base64

        response = self._ask("routing/get", arg=f"/ipns/{name}", timeout=self._patience)
        for line in response.read(_MOST_JSON).splitlines():
            try:
                event = json.loads(line)
                if event["Type"] == _VALUE:
                    return base64.b64decode(event["Extra"], validate=True)
            except (ValueError, TypeError, KeyError, RecursionError):
                raise SourceError("its answer is not an event of routing/get") from None
        return None

    def dnslink(self, name: str) -> str | None:
        """Return what a domain's DNSLink says; see :meth:`Source.dnslink`."""
        response = self._ask(
            "name/resolve", arg=f"/ipns/{name}", recursive="false", timeout=self._patience
        )
        try:
            path = json.loads(response.read(_MOST_JSON))["Path"]
        except (ValueError, TypeError, KeyError, RecursionError):
            path = None
        if not isinstance(path, str):
            raise SourceError("its answer is not a path")
        return path

    def close(self) -> None:
        """End all requests; see :meth:`Source.close`."""
        self._client.close()

    def _ask(self, command: str, **arguments: str) -> Response:
        """Give the node a command, and return its answer.

        Raises:
            Absent: The node does not have what it was asked for.
            SourceError: It has no such command, or has failed.
        """
        from urllib.parse import urlencode

        response = self._client.request("POST", f"{_API}{command}?{urlencode(arguments)}")
        if response.status == _OK and response.media_type != "text/html":
            return response
        said = self._message(response)
        if said is None:
            refused = response.status in (_UNAUTHORIZED, _FORBIDDEN)
            text = f"it answered {response.status}" + ("" if refused else ": it is no IPFS node")
            raise _Unknown(text, gone=command == "block/get")
        if any(word in said.lower() for word in _ABSENT):
            raise Absent(f"does not have it: {said}")
        raise SourceError(f"it answered {response.status}: {said}")

    @staticmethod
    def _message(response: Response) -> str | None:
        """Return what a node says of an error, or None if no node says so."""
        if response.media_type != "application/json":
            response.discard()
            return None
        try:
            said = json.loads(response.read(_MOST_JSON))["Message"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return str(said)[:_LONGEST_MESSAGE]


class _Unknown(SourceError):
    """A node does not know the command, or is none."""
