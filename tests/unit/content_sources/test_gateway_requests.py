"""What a trustless gateway is asked, and what its answers mean."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from runner.content.addresses import parse_gateway
from runner.content.blockstore import MAX_BLOCK_SIZE
from runner.content.cid import RAW, Cid
from runner.content.gateway import Gateway
from runner.content.resolver import ContentPath
from runner.content.source import MAX_RECORD_SIZE, Absent, SourceError
from tests.unit.content_sources.stub import Answering, Stub

BLOCK = b"a block"
CID = Cid.of(BLOCK, codec=RAW)
RAW_TYPE = "application/vnd.ipld.raw"
CAR_TYPE = "application/vnd.ipld.car"
RECORD_TYPE = "application/vnd.ipfs.ipns-record"


@contextmanager
def gateway(answering: Answering) -> Iterator[tuple[Stub, Gateway]]:
    with Stub(answering) as server:
        source = Gateway(parse_gateway(f"{server.url}/below", "a test"), watch=lambda count: None)
        try:
            yield server, source
        finally:
            source.close()


def says(status: int, body: bytes = b"", kind: str = "text/plain") -> Answering:
    return lambda handler: handler.answer(status, body, kind)


def test_a_block_is_asked_for_as_it_is() -> None:
    with gateway(says(200, BLOCK, RAW_TYPE)) as (server, source):
        assert source.get(CID) == BLOCK
        assert source.name == f"gateway {server.url}/below"
    (asked,) = server.asked
    assert (asked.method, asked.target) == ("GET", f"/below/ipfs/{CID}?format=raw")
    assert asked.headers["accept"] == RAW_TYPE
    assert asked.headers["accept-encoding"] == "identity"


def test_a_block_that_is_too_large_is_not_read() -> None:
    with (
        gateway(says(200, bytes(MAX_BLOCK_SIZE + 1), RAW_TYPE)) as (_, source),
        pytest.raises(SourceError, match=f"more than {MAX_BLOCK_SIZE} bytes"),
    ):
        source.get(CID)


@pytest.mark.parametrize("everything", [False, True])
def test_a_car_is_asked_for_in_the_order_in_which_it_is_read(everything: bool) -> None:
    with gateway(says(200, b"a car", f"{CAR_TYPE}; version=1; order=dfs")) as (server, source):
        stream = source.car(ContentPath(CID, ("a b", "\u00e4?#%")), everything=everything)
        assert stream is not None
        assert stream.read(100) == b"a car"
        stream.close()
    (asked,) = server.asked
    scope = "all" if everything else "entity"
    assert asked.target == (
        f"/below/ipfs/{CID}/a%20b/%C3%A4%3F%23%25"
        f"?format=car&dag-scope={scope}&car-order=dfs&car-dups=n"
    )
    assert asked.headers["accept"] == f"{CAR_TYPE}; version=1; order=dfs; dups=n"


@pytest.mark.parametrize(("status", "again"), [(404, 2), (400, 1), (406, 1), (415, 1), (501, 1)])
def test_who_has_no_cars_is_not_asked_for_another(status: int, again: int) -> None:
    with gateway(says(status)) as (server, source):
        for _ in range(2):
            assert source.car(ContentPath(CID, ())) is None
        assert len(server.asked) == again


def test_who_sends_a_block_for_a_car_has_no_cars() -> None:
    with gateway(says(200, BLOCK, RAW_TYPE)) as (server, source):
        for _ in range(2):
            assert source.car(ContentPath(CID, ())) is None
        assert len(server.asked) == 1


@pytest.mark.parametrize("status", [404, 410, 451, 504])
def test_what_a_gateway_does_not_have_or_find_is_absent(status: int) -> None:
    with (
        gateway(says(status, b"<html>", "text/html")) as (_, source),
        pytest.raises(Absent, match=f"it answered {status}"),
    ):
        source.get(CID)


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 407, 500, 502, 503])
def test_any_other_status_is_a_failure(status: int) -> None:
    with gateway(says(status)) as (_, source):
        with pytest.raises(SourceError, match=f"it answered {status}$") as caught:
            source.get(CID)
        assert not isinstance(caught.value, Absent)
        assert caught.value.gone == (status in (401, 407))


@pytest.mark.parametrize("kind", ["text/html", "application/octet-stream", CAR_TYPE, "x", ""])
def test_what_is_called_something_else_is_not_even_read(kind: str) -> None:
    with gateway(says(200, BLOCK, kind)) as (_, source):
        with pytest.raises(SourceError, match=f"not with {RAW_TYPE}") as caught:
            source.get(CID)
        assert caught.value.gone


def test_a_record_is_asked_for() -> None:
    with gateway(says(200, b"a record", RECORD_TYPE)) as (server, source):
        assert source.ipns("k51") == b"a record"
        assert source.dnslink("example.org") is None
    (asked,) = server.asked
    assert asked.target == "/below/ipns/k51?format=ipns-record"
    assert asked.headers["accept"] == RECORD_TYPE
    with (
        gateway(says(200, bytes(MAX_RECORD_SIZE + 1), RECORD_TYPE)) as (_, source),
        pytest.raises(SourceError, match=f"more than {MAX_RECORD_SIZE} bytes"),
    ):
        source.ipns("k51")
