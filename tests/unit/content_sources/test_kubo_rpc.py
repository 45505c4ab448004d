"""What a node is asked over its RPC, and what its answers mean."""

import json
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from runner.content.addresses import Endpoint, parse_node
from runner.content.blockstore import MAX_BLOCK_SIZE
from runner.content.cid import RAW, Cid
from runner.content.http import Limits
from runner.content.kubo import Rpc
from runner.content.resolver import ContentPath
from runner.content.source import Absent, SourceError
from tests.unit.content_sources.stub import Answering, Handler, Stub

BLOCK = b"a block"
CID = Cid.of(BLOCK, codec=RAW)
NAME = "k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8"


@contextmanager
def node(answering: Answering) -> Iterator[tuple[Stub, Rpc]]:
    with Stub(answering) as server:
        endpoint = parse_node(f"/ip4/127.0.0.1/tcp/{server.server_address[1]}/http", "a test")
        assert isinstance(endpoint, Endpoint)
        rpc = Rpc(endpoint, watch=lambda count: None)
        try:
            yield server, rpc
        finally:
            rpc.close()


def arguments(target: str) -> tuple[str, dict[str, str]]:
    path, _, query = target.partition("?")
    return path, dict(urllib.parse.parse_qsl(query))


def failing(message: str, status: int = 500) -> Answering:
    body = json.dumps({"Message": message, "Code": 0, "Type": "error"}).encode()
    return lambda handler: handler.answer(status, body, "application/json")


def test_a_block_is_asked_for_by_post_with_a_time() -> None:
    with node(lambda handler: handler.answer(200, BLOCK)) as (server, rpc):
        assert rpc.get(CID) == BLOCK
    (asked,) = server.asked
    assert asked.method == "POST"
    assert arguments(asked.target) == ("/api/v0/block/get", {"arg": str(CID), "timeout": "28s"})


def test_the_node_gives_up_before_it_is_given_up() -> None:
    endpoint = Endpoint("x", host="127.0.0.1", port=1)
    for idle, patience in ((30.0, "28s"), (90.0, "88s"), (1.0, "1s"), (0.5, "1s")):
        rpc = Rpc(endpoint, watch=lambda count: None, limits=Limits(idle=idle))
        assert rpc._patience == patience


def test_a_block_that_is_too_large_is_not_read() -> None:
    with (
        node(lambda handler: handler.answer(200, bytes(MAX_BLOCK_SIZE + 1))) as (_, rpc),
        pytest.raises(SourceError, match=f"more than {MAX_BLOCK_SIZE} bytes"),
    ):
        rpc.get(CID)


@pytest.mark.parametrize(
    "message",
    [
        f"block was not found locally (offline): ipld: could not find {CID}",
        "context deadline exceeded",
        "merkledag: not found",
        "blockstore: block not found",
        "request timed out",
    ],
)
def test_what_a_node_does_not_have_or_find_is_absent(message: str) -> None:
    with node(failing(message)) as (_, rpc):
        with pytest.raises(Absent, match="does not have it: ") as caught:
            rpc.get(CID)
        assert message in caught.value.text


def test_another_failure_of_the_node_is_told() -> None:
    with node(failing("the disk is full" + "!" * 1000)) as (_, rpc):
        with pytest.raises(SourceError, match="it answered 500: the disk is full!!!") as caught:
            rpc.get(CID)
        assert not isinstance(caught.value, Absent)
        assert not caught.value.gone
        assert len(caught.value.text) < 300


@pytest.mark.parametrize(
    ("status", "body", "kind", "why"),
    [
        (404, b"404 page not found", "text/plain", "it answered 404: it is no IPFS node"),
        (200, b"<html>", "text/html", "it answered 200: it is no IPFS node"),
        (500, b"[]", "application/json", "it answered 500: it is no IPFS node"),
        (500, b"[" * 50_000, "application/json", "it answered 500: it is no IPFS node"),
        (500, b"\xff", "application/json", "it answered 500: it is no IPFS node"),
        (403, b"403 - Forbidden", "text/plain", "it answered 403$"),
        (401, b"", "text/plain", "it answered 401$"),
        (302, b"", "text/plain", "it answered 302"),
    ],
)
def test_who_is_no_node_is_not_asked_again(status: int, body: bytes, kind: str, why: str) -> None:
    def answer(handler: Handler) -> None:
        handler.answer(status, body, kind, Location="/elsewhere")

    with node(answer) as (server, rpc):
        with pytest.raises(SourceError, match=why) as caught:
            rpc.get(CID)
        assert caught.value.gone
    assert len(server.asked) == 1


def test_an_export_is_asked_for_when_the_node_has_the_root() -> None:
    with node(lambda handler: handler.answer(200, b"a car")) as (server, rpc):
        stream = rpc.car(ContentPath(CID, ()))
        assert stream is not None
        assert stream.read(100) == b"a car"
        stream.close()
        # Not every node knows paths.
        assert rpc.car(ContentPath(CID, ("name",))) is None
    assert [arguments(target) for target in server.targets] == [
        ("/api/v0/block/stat", {"arg": str(CID), "timeout": "28s"}),
        ("/api/v0/dag/export", {"arg": str(CID), "progress": "false"}),
    ]


def test_an_export_of_what_the_node_does_not_have_is_not_asked_for() -> None:
    with node(failing("context deadline exceeded")) as (server, rpc), pytest.raises(Absent):
        rpc.car(ContentPath(CID, ()))
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "unknown", [("block/stat",), ("dag/export",), ("block/stat", "dag/export")]
)
def test_a_node_that_lacks_a_command_is_asked_in_another_way(unknown: tuple[str, ...]) -> None:
    def answer(handler: Handler) -> None:
        if handler.path.partition("?")[0].removeprefix("/api/v0/") in unknown:
            handler.answer(404, b"404 page not found")
        else:
            handler.answer(200, BLOCK)

    with node(answer) as (_, rpc):
        stream = rpc.car(ContentPath(CID, ()))
        assert (stream is None) == ("dag/export" in unknown)
        if stream is not None:
            stream.close()
        assert rpc.get(CID) == BLOCK


def test_a_record_is_asked_for_by_its_own_command() -> None:
    with node(lambda handler: handler.answer(200, b"a record")) as (server, rpc):
        assert rpc.ipns(NAME) == b"a record"
    assert arguments(server.targets[0]) == ("/api/v0/name/get", {"arg": NAME, "timeout": "28s"})


def routed(body: bytes) -> Answering:
    def answer(handler: Handler) -> None:
        if "routing/get" in handler.path:
            handler.answer(200, body, "application/json")
        else:
            handler.answer(404, b"404 page not found")

    return answer


def test_a_record_is_asked_for_from_the_routing_where_there_is_no_such_command() -> None:
    events = b'{"Extra":"","ID":"x","Type":0}\n{"Extra":"YSByZWNvcmQ=","Type":5}\n'
    with node(routed(events)) as (server, rpc):
        assert rpc.ipns(NAME) == b"a record"
    path, query = arguments(server.targets[1])
    assert (path, query["arg"]) == ("/api/v0/routing/get", f"/ipns/{NAME}")
    with node(routed(b"")) as (_, rpc):
        assert rpc.ipns(NAME) is None


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"[]",
        b"{}",
        b'{"Type":5}',
        b'{"Type":5,"Extra":"%"}',
        b'{"Type":5,"Extra":1}',
        b"[" * 9999,
    ],
)
def test_an_answer_of_the_routing_that_is_none_is_an_error(body: bytes) -> None:
    with node(routed(body)) as (_, rpc), pytest.raises(SourceError, match="not an event"):
        rpc.ipns(NAME)


def test_a_domain_is_resolved_by_one_step() -> None:
    answer = json.dumps({"Path": f"/ipfs/{CID}"}).encode()
    with node(lambda handler: handler.answer(200, answer, "application/json")) as (server, rpc):
        assert rpc.dnslink("example.org") == f"/ipfs/{CID}"
    path, query = arguments(server.targets[0])
    assert path == "/api/v0/name/resolve"
    assert (query["arg"], query["recursive"]) == ("/ipns/example.org", "false")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"Path":5}', b"{}", b"[" * 9999])
def test_an_answer_that_is_no_path_is_an_error(body: bytes) -> None:
    with (
        node(lambda handler: handler.answer(200, body)) as (_, rpc),
        pytest.raises(SourceError, match="not a path"),
    ):
        rpc.dnslink("example.org")
