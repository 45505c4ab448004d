"""A gateway that lies in every way: nothing of it is believed, and nothing hangs or fills up."""

from __future__ import annotations

import gzip
import hashlib
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from _pytest.mark import ParameterSet

from runner.content import varint
from runner.content.addresses import parse_gateway
from runner.content.blockstore import MAX_BLOCK_SIZE, Blockstore
from runner.content.cid import RAW, Cid
from runner.content.fetch import AT_ONCE, Fetched
from runner.content.gateway import Gateway
from runner.content.http import Limits
from runner.content.importer import Profile
from runner.content.kubo import Rpc
from runner.content.resolver import parse_path, resolve_file
from runner.content.source import Watch
from runner.errors import EXIT_NOT_FOUND, WwError
from tests.conftest import EXAMPLES, Ww, need_command
from tests.content.liar import (
    CAR_TYPE,
    RAW_TYPE,
    Content,
    Liar,
    Lie,
    Request,
    Wire,
    car_of,
    honest,
    section,
)
from tests.content.peers import MEASURE, check_whole, wait_for

Done = subprocess.CompletedProcess[bytes]

HELLO = EXAMPLES / "hello" / "hello.wasm"
OTHER = EXAMPLES / "cat-fds" / "cat-fds.wasm"

# Limits of time that a test can wait for, and a rate that what drips here has not.
SHORT = Limits(connect=0.7, idle=0.7, rate=4096)

# As ww is, with them in place of its own.
QUICK = f"""
import sys
from runner.content.http import Limits
Limits.__new__.__defaults__ = {tuple(SHORT)}
from runner.__main__ import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def content() -> Content:
    return Content(HELLO)


# --- what it says --------------------------------------------------------------------------------

# Each is told of only one kind of request, and all are told what the other kind gets.


def flipped(block: bytes) -> bytes:
    middle = len(block) // 2
    return block[:middle] + bytes([block[middle] ^ 1]) + block[middle + 1 :]


def other_block(liar: Liar, cid: Cid) -> bytes:
    """Another block than that of a CID, and as good a one."""
    blocks = list(liar.content.blocks)
    return liar.content.blocks[blocks[blocks.index(cid) - 1]]


def of_block(change: Callable[[bytes], bytes]) -> Lie:
    """Send a changed block where it is asked for; of a CAR, change the one in the middle."""

    def lie(liar: Liar, request: Request, wire: Wire) -> None:
        blocks = dict(liar.content.blocks)
        if request.format == "raw":
            wire.answer(change(blocks[request.cid]), RAW_TYPE)
        else:
            changed = change(blocks[liar.content.leaf])
            # As long as it can be one; what is longer is not even a section.
            if len(changed) <= MAX_BLOCK_SIZE:
                blocks[liar.content.leaf] = changed
                wire.answer(car_of([liar.content.root], blocks.items()), CAR_TYPE)
            else:
                head = car_of([liar.content.root], ())
                wire.answer(head + section(bytes(liar.content.root), changed), CAR_TYPE)

    return lie


def swapped(liar: Liar, request: Request, wire: Wire) -> None:
    if request.format == "raw":
        return wire.answer(other_block(liar, request.cid), RAW_TYPE)
    cids = list(liar.content.blocks)
    turned = [*cids[:2], *reversed(cids[2:])]
    pairs = zip(turned, liar.content.blocks.values(), strict=True)
    return wire.answer(car_of([liar.content.root], pairs), CAR_TYPE)


def body(liar: Liar, request: Request) -> tuple[bytes, str]:
    """What an honest gateway would answer."""
    if request.format == "raw":
        return liar.content.blocks[request.cid], RAW_TYPE
    return liar.content.car(), CAR_TYPE


def cut_off(liar: Liar, request: Request, wire: Wire) -> None:
    data, kind = body(liar, request)
    wire.head(200, f"Content-Type: {kind}", size=len(data))
    wire.send(data[: len(data) // 2])


def cut_off_in_a_chunk(liar: Liar, request: Request, wire: Wire) -> None:
    data, kind = body(liar, request)
    wire.head(200, f"Content-Type: {kind}", "Transfer-Encoding: chunked")
    wire.chunk(data[: len(data) // 2])


def cut_off_and_called_whole(liar: Liar, request: Request, wire: Wire) -> None:
    data, kind = body(liar, request)
    wire.answer(data[: len(data) // 2], kind)


def empty(liar: Liar, request: Request, wire: Wire) -> None:
    wire.answer(b"", body(liar, request)[1])


def endless(liar: Liar, request: Request, wire: Wire) -> None:
    data, kind = body(liar, request)
    wire.head(200, f"Content-Type: {kind}", "Transfer-Encoding: chunked")
    while True:
        wire.chunk(data[: len(data) // 2])


def endless_zeros(liar: Liar, request: Request, wire: Wire) -> None:
    wire.head(200, f"Content-Type: {body(liar, request)[1]}")
    wire.forever(bytes(1 << 16))


def endless_verified_blocks(liar: Liar, request: Request, wire: Wire) -> None:
    """Blocks that nobody has asked for, each with its own CID."""
    wire.head(200, f"Content-Type: {CAR_TYPE}")
    wire.send(car_of([liar.content.root], ()))
    seeded = random.Random(1)
    while True:
        block = seeded.randbytes(20)
        wire.send(section(bytes(Cid.of(block, codec=RAW)), block))


def endless_repetition(liar: Liar, request: Request, wire: Wire) -> None:
    """The root, again and again."""
    wire.head(200, f"Content-Type: {CAR_TYPE}")
    root = liar.content.root
    wire.send(car_of([root], ()))
    wire.forever(section(bytes(root), liar.content.blocks[root]) * 100)


def endless_header(_liar: Liar, _request: Request, wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\n")
    wire.forever(b"X-Thing: " + b"x" * 1000 + b"\r\n")


def endless_line(_liar: Liar, _request: Request, wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\nX-Thing: ")
    wire.forever(b"x" * 1000)


def endless_waiting(_liar: Liar, _request: Request, wire: Wire) -> None:
    wire.forever(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def endless_chunk_extension(liar: Liar, request: Request, wire: Wire) -> None:
    wire.head(200, f"Content-Type: {body(liar, request)[1]}", "Transfer-Encoding: chunked")
    wire.send(b"5;")
    wire.forever(b"x=y;" * 1000)


def endless_trailer(liar: Liar, request: Request, wire: Wire) -> None:
    data, kind = flipped(body(liar, request)[0]), body(liar, request)[1]
    wire.head(200, f"Content-Type: {kind}", "Transfer-Encoding: chunked")
    wire.chunk(data)
    wire.send(b"0\r\n")
    wire.forever(b"X-Thing: y\r\n" * 100)


def hanging(_liar: Liar, _request: Request, wire: Wire) -> None:
    wire.hang()


def hanging_after_the_head(liar: Liar, request: Request, wire: Wire) -> None:
    data, kind = body(liar, request)
    wire.head(200, f"Content-Type: {kind}", size=len(data))
    wire.hang()


def hanging_in_the_middle(liar: Liar, request: Request, wire: Wire) -> None:
    data, kind = body(liar, request)
    wire.head(200, f"Content-Type: {kind}", size=len(data))
    wire.send(data[: len(data) // 2])
    wire.hang()


def dripping(liar: Liar, request: Request, wire: Wire) -> None:
    data, kind = body(liar, request)
    wire.head(200, f"Content-Type: {kind}", size=len(data))
    wire.drip(data, 0.01)


def dripping_head(_liar: Liar, _request: Request, wire: Wire) -> None:
    wire.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Thing: y\r\n" * 1000, 0.01)


def redirect(target: Callable[[Liar, Request], str], status: int = 302) -> Lie:
    def lie(liar: Liar, request: Request, wire: Wire) -> None:
        wire.answer(b"", "text/plain", f"Location: {target(liar, request)}", status=status)

    return lie


def redirect_to(other: Liar, status: int = 302) -> Lie:
    return redirect(lambda liar, request: f"{other.url}{request.target}", status)


def longer_and_longer(_liar: Liar, request: Request) -> str:
    """Never the same place twice."""
    path, _, query = request.target.partition("?")
    return f"{path}/again?{query}"


def gzip_bomb(liar: Liar, request: Request, wire: Wire) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    wire.answer(bomb, body(liar, request)[1], "Content-Encoding: gzip")


def gzipped(liar: Liar, request: Request, wire: Wire) -> None:
    data, kind = body(liar, request)
    wire.answer(gzip.compress(data), kind, "Content-Encoding: gzip")


def page(_liar: Liar, _request: Request, wire: Wire) -> None:
    wire.answer(b"<html>Please log in to this network</html>", "text/html")


def as_a_file(liar: Liar, _request: Request, wire: Wire) -> None:
    """What an ordinary gateway sends to an ordinary browser: to be trusted."""
    wire.answer(liar.content.bytes, "application/octet-stream")


def untyped(liar: Liar, request: Request, wire: Wire) -> None:
    data = flipped(body(liar, request)[0])
    wire.head(200, size=len(data))
    wire.send(data)


def status(number: int, *headers: str) -> Lie:
    def lie(_liar: Liar, _request: Request, wire: Wire) -> None:
        wire.answer(b"<html>sorry</html>", "text/html", *headers, status=number)

    return lie


def bytes_of(data: bytes) -> Lie:
    """Send this instead of HTTP."""

    def lie(_liar: Liar, _request: Request, wire: Wire) -> None:
        wire.send(data)

    return lie


def with_headers(*headers: str) -> Lie:
    """Send half of the body, with headers that lie about it."""

    def lie(liar: Liar, request: Request, wire: Wire) -> None:
        data, kind = body(liar, request)
        wire.head(200, f"Content-Type: {kind}", *headers)
        wire.send(data[: len(data) // 2])

    return lie


def car_that(make: Callable[[Content], bytes]) -> Lie:
    def lie(liar: Liar, _request: Request, wire: Wire) -> None:
        wire.answer(make(liar.content), CAR_TYPE)

    return lie


def other_content(content: Content) -> bytes:
    """Content that is whole, and another one."""
    other = Content(OTHER)
    return car_of([content.root], other.blocks.items())


def renamed(content: Content) -> bytes:
    """Another file's root under the CID that is asked for."""
    other = Content(OTHER)
    blocks = dict(other.blocks)
    root = blocks.pop(other.root)
    return car_of([content.root], [(content.root, root), *blocks.items()])


def weak_hash(content: Content) -> bytes:
    """The root under a CID of SHA-1."""
    root = content.blocks[content.root]
    weak = b"\x01\x70\x11\x14" + hashlib.sha1(root).digest()
    return car_of([content.root], ()) + section(weak, root) + content.car()[-100:]


def identity(content: Content) -> bytes:
    """A block of another content whose CID says that it is its own hash."""
    text = b"trust me"
    return car_of([content.root], ()) + section(b"\x01\x55\x00\x08" + text, text)


class Case(NamedTuple):
    lie: Lie
    formats: Sequence[str] = ("car", "raw")
    said: str = ""
    """What the error must tell, as a regular expression."""
    waits: bool = False
    """Whether it is found out by its time, or by a count that takes time."""


WRONG = "it sent other bytes than those of block"
CASES = {
    "wrong bytes": Case(of_block(flipped), said=WRONG),
    "a byte less": Case(of_block(lambda block: block[:-1]), said=WRONG),
    "a byte more": Case(of_block(lambda block: block + b"\0"), said=WRONG),
    "no bytes": Case(of_block(lambda block: b""), said=WRONG),
    "zeros": Case(of_block(lambda block: bytes(len(block))), said=WRONG),
    "swapped blocks": Case(swapped, said=WRONG),
    "a block that is too large": Case(
        of_block(lambda block: bytes(MAX_BLOCK_SIZE + 1)),
        said="its answer has more than 2097152 bytes",
    ),
    "cut off": Case(cut_off, said="its answer is cut off"),
    "cut off in a chunk": Case(cut_off_in_a_chunk, said="its answer is cut off"),
    "cut off and called whole": Case(cut_off_and_called_whole),
    "empty": Case(empty),
    "endless": Case(endless, said="its answer has more than 2097152 bytes"),
    "endless zeros": Case(endless_zeros, said="its answer has more than 2097152 bytes"),
    "endless blocks": Case(endless_verified_blocks, ("car",)),
    "endless repetition": Case(endless_repetition, ("car",), waits=True),
    "endless header": Case(endless_header, said="its answer is not HTTP"),
    "endless line": Case(endless_line, said="its answer is not HTTP"),
    "endless waiting": Case(endless_waiting, said="its answer has more bytes than it may have"),
    "endless chunk extension": Case(endless_chunk_extension, said="its answer is not HTTP"),
    "endless trailer": Case(endless_trailer, said="its answer has more bytes than it may have"),
    "hanging": Case(hanging, said="nothing came from it for", waits=True),
    "hanging after the head": Case(
        hanging_after_the_head, said="nothing came from it for", waits=True
    ),
    "hanging in the middle": Case(
        hanging_in_the_middle, said="nothing came from it for", waits=True
    ),
    "dripping": Case(dripping, said="it is too slow: ", waits=True),
    "dripping head": Case(dripping_head, said="it is too slow: ", waits=True),
    "redirect to itself": Case(
        redirect(lambda liar, request: request.target),
        said="it redirects more than 5 times|it answered 30",
    ),
    "redirect on and on": Case(
        redirect(longer_and_longer, 307), said="it redirects more than 5 times|it answered 30"
    ),
    "redirect to a file": Case(
        redirect(lambda liar, request: "file:///etc/passwd"),
        said="it redirects to what is no URL|it answered 302",
    ),
    "redirect to nowhere": Case(
        redirect(lambda liar, request: ""), said="it redirects to nowhere|it answered 302"
    ),
    "redirect to no URL": Case(
        redirect(lambda liar, request: "http://[::1:99999/"),
        said="it redirects to what is no URL|it answered 302",
    ),
    "redirect to a closed port": Case(
        redirect(lambda liar, request: "http://127.0.0.1:1/"),
        said="Connection refused|it answered 302",
    ),
    "gzip bomb": Case(gzip_bomb, said="its answer is encoded as gzip"),
    "gzipped": Case(gzipped, said="its answer is encoded as gzip"),
    "a page": Case(page, said="it answered with text/html|it is no IPFS node"),
    "a file": Case(as_a_file, said=f"it answered with application/octet-stream|{WRONG}"),
    "no type": Case(untyped, said=f"it answered with text/plain|{WRONG}"),
    **{
        f"status {n}": Case(status(n), said=f"it answered {n}")
        for n in (400, 401, 403, 404, 410, 451)
    },
    **{
        f"status {n}": Case(status(n), said=f"it answered {n}")
        for n in (204, 206, 304, 500, 502, 504)
    },
    "busy": Case(status(429, "Retry-After: 0"), said="it answered 429, 3 times"),
    "busy for an hour": Case(
        status(429, "Retry-After: 3600"), said="it answered 429, to be asked again in 3600 s"
    ),
    "busy for ever": Case(
        status(503, f"Retry-After: {10**30}"), said="it answered 503, to be asked again"
    ),
    "busy until a date": Case(
        status(503, "Retry-After: Fri, 31 Dec 2999 23:59:59 GMT"),
        said="it answered 503, to be asked again",
    ),
    "no answer": Case(bytes_of(b""), said="it closed the connection instead of answering"),
    "another protocol": Case(
        bytes_of(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"), said="its answer is not HTTP"
    ),
    "binary": Case(bytes_of(bytes(range(256)) * 10), said="its answer is not HTTP"),
    "an endless status": Case(
        bytes_of(b"HTTP/1.1 " + b"9" * 100_000), said="its answer is not HTTP"
    ),
    "a negative status": Case(bytes_of(b"HTTP/1.1 -200 OK\r\n\r\n"), said="its answer is not HTTP"),
    "a negative length": Case(with_headers("Content-Length: -1")),
    "a huge length": Case(
        with_headers(f"Content-Length: {10**18}"), said="its answer has more than 2097152 bytes"
    ),
    "no number as length": Case(with_headers("Content-Length: much")),
    "two lengths": Case(with_headers("Content-Length: 10", "Content-Length: 20")),
    "an unknown encoding": Case(
        with_headers("Transfer-Encoding: gzip, chunked"), said="its answer is encoded as gzip"
    ),
    "no number of a chunk": Case(
        with_headers("Transfer-Encoding: chunked"), said="its answer is cut off"
    ),
    "a car of other content": Case(car_that(other_content), ("car",)),
    "a car under a wrong name": Case(car_that(renamed), ("car",), WRONG),
    "a car with a weak hash": Case(car_that(weak_hash), ("car",)),
    "a car with no hash": Case(car_that(identity), ("car",)),
    "an empty car": Case(car_that(lambda content: car_of([content.root], ())), ("car",)),
    "a car without roots": Case(car_that(lambda content: car_of([], ())), ("car",)),
    "a header of 2 GiB": Case(car_that(lambda content: varint.encode(2 << 30)), ("car",)),
    "a section of 2 GiB": Case(
        car_that(lambda content: car_of([content.root], ()) + varint.encode(2 << 30)), ("car",)
    ),
    "a car that ends in a text": Case(
        car_that(lambda content: content.car()[:-5000] + b"\nerror: block was not found"), ("car",)
    ),
}


def parameters(names: Iterable[str]) -> list[ParameterSet]:
    return [
        pytest.param(CASES[name], format_, id=f"{name}, {format_}")
        for name in names
        for format_ in CASES[name].formats
    ]


EACH = parameters(CASES)
# What takes no time, for tests that say the same another time.
QUICK_ONES = parameters(name for name, case in CASES.items() if not case.waits)
# Each in one of its formats, for tests whose every case starts two programs.
ONCE = [
    pytest.param(case, case.formats[number % len(case.formats)], id=name)
    for number, (name, case) in enumerate(CASES.items())
]


def telling(case: Case, format_: str) -> Lie:
    """Tell this lie where this format is asked for, and refuse the other."""

    def lie(liar: Liar, request: Request, wire: Wire) -> None:
        if request.format == format_:
            case.lie(liar, request, wire)
        else:
            wire.answer(b"not that", "text/plain", status=406 if format_ == "raw" else 404)

    return lie


# --- what comes of it ----------------------------------------------------------------------------


def call(
    ww: Ww,
    *arguments: str | Path,
    gateways: Sequence[Liar],
    waits: bool = False,
    env: Mapping[str, str] | None = None,
) -> Done:
    """`ww ARGUMENTS`, with short limits of time if those are what is waited for."""
    named = {"WW_GATEWAYS": " ".join(gateway.url for gateway in gateways), **(env or {})}
    start = [sys.executable, "-c", QUICK] if waits else ww.command
    return ww.call([*start, *arguments], env=named, timeout=30)


def check_said(text: str, case: Case, format_: str) -> None:
    # Who fails at a CAR is asked for a single block, and what comes of that is what is told; but
    # not who has sent wrong bytes.
    if format_ == "raw" or case.said == WRONG:
        assert re.search(case.said, text), text


def check_error(done: Done, liar: Liar, case: Case, format_: str) -> None:
    assert (done.returncode, done.stdout) == (EXIT_NOT_FOUND, b""), done.stderr
    text = done.stderr.decode()
    assert "Traceback" not in text
    assert text.isprintable() or text.replace("\n", "").isprintable()
    errors = [line for line in text.splitlines() if line.startswith("ww: error: ")]
    assert errors == text.splitlines()[-1:]
    assert len(text) < 2000
    assert f"gateway {liar.url}: " in text
    check_said(text, case, format_)


@pytest.mark.parametrize(("case", "format_"), EACH)
def test_what_it_sends_never_runs(ww: Ww, content: Content, case: Case, format_: str) -> None:
    with Liar(content, telling(case, format_)) as liar:
        done = call(ww, "run", content.address, gateways=[liar], waits=case.waits)
        check_error(done, liar, case, format_)
        assert format_ in liar.asked
        assert len(liar.requests) < 30
    check_whole(ww.home)


@pytest.mark.parametrize(("case", "format_"), ONCE)
def test_an_honest_one_behind_it_is_believed_instead(
    ww: Ww, content: Content, case: Case, format_: str
) -> None:
    with Liar(content, telling(case, format_)) as liar, Liar(content) as other:
        command = ("import", content.address, "-o", "out")
        done = call(ww, *command, gateways=[liar, other], waits=case.waits)
        assert (done.returncode, done.stdout) == (0, b"out\n"), done.stderr
        assert (ww.tmp / "out").read_bytes() == content.bytes
        assert format_ in liar.asked
    assert check_whole(ww.home) == len(content.blocks)
    if case.said == WRONG:
        assert re.search(f"ww: warning: gateway {liar.url}: {case.said}", done.stderr.decode())
        # It had lied once, and was not asked again.
        assert len(liar.requests) <= 2 + AT_ONCE


@pytest.mark.parametrize("kind", [Gateway, Rpc], ids=["gateway", "node"])
@pytest.mark.parametrize(("case", "format_"), QUICK_ONES)
def test_the_library_reports_it_and_keeps_nothing_unverified(
    tmp_path: Path, content: Content, case: Case, format_: str, kind: type[Gateway | Rpc]
) -> None:
    warnings: list[str] = []
    with (
        Liar(content, telling(case, format_)) as liar,
        fetched(tmp_path, warnings, kind, liar) as blocks,
        pytest.raises(WwError) as caught,
    ):
        read(blocks, content)
    assert caught.value.code == EXIT_NOT_FOUND
    assert f"{liar.url}: " in str(caught.value)
    check_said(str(caught.value), case, format_)
    assert all(f"{liar.url}: " in warning for warning in warnings)
    check_whole(tmp_path)


@pytest.mark.parametrize(("case", "format_"), QUICK_ONES)
def test_an_honest_gateway_behind_a_node_that_lies_is_believed_instead(
    tmp_path: Path, content: Content, case: Case, format_: str
) -> None:
    with Liar(content, telling(case, format_)) as liar, Liar(content) as other:
        blocks = Fetched(
            Blockstore(str(tmp_path)),
            lambda watch: [source(Rpc, liar, watch), source(Gateway, other, watch)],
        )
        with blocks:
            assert read(blocks, content) == content.bytes
    assert check_whole(tmp_path) == len(content.blocks)


def source(
    kind: type[Gateway | Rpc], liar: Liar, watch: Watch, limits: Limits | None = None
) -> Gateway | Rpc:
    return kind(parse_gateway(liar.url, "a test"), watch=watch, limits=limits)


def fetched(
    home: Path,
    warnings: list[str],
    kind: type[Gateway | Rpc],
    *liars: Liar,
    limits: Limits | None = None,
) -> Fetched:
    return Fetched(
        Blockstore(str(home)),
        lambda watch: [source(kind, liar, watch, limits) for liar in liars],
        warn=warnings.append,
    )


def read(blocks: Fetched, content: Content) -> bytes:
    path = parse_path(content.address)
    blocks.prepare(path)
    return b"".join(resolve_file(blocks, str(path)).chunks())


@pytest.mark.parametrize(
    "name",
    [
        *("cut off", "cut off in a chunk", "cut off and called whole", "empty"),
        *("hanging in the middle", "dripping", "no answer", "binary"),
        *("status 400", "status 404", "status 500", "status 502", "status 504"),
        *("an empty car", "a car of other content", "a car without roots", "a header of 2 GiB"),
        *("a section of 2 GiB", "a car that ends in a text"),
    ],
)
def test_one_that_cannot_send_a_car_is_asked_for_single_blocks(
    tmp_path: Path, content: Content, name: str
) -> None:
    def unable(liar: Liar, request: Request, wire: Wire) -> None:
        (CASES[name].lie if request.format == "car" else honest)(liar, request, wire)

    limits = SHORT if CASES[name].waits else None
    with (
        Liar(content, unable) as liar,
        fetched(tmp_path, [], Gateway, liar, limits=limits) as blocks,
    ):
        assert read(blocks, content) == content.bytes
        assert liar.asked[0] == "car"
        assert liar.asked.count("raw") <= len(content.blocks)
    assert check_whole(tmp_path) == len(content.blocks)


# --- lies that are half true ---------------------------------------------------------------------


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_is_followed_and_trusted_no_more(
    ww: Ww, content: Content, code: int
) -> None:
    with Liar(content) as other, Liar(content, of_block(flipped)) as third:
        for target, expected in ((other, 0), (third, EXIT_NOT_FOUND)):
            to = redirect_to(target, code)
            with Liar(content, to) as liar:
                done = call(ww, "import", content.address, "-o", f"{expected}", gateways=[liar])
                assert done.returncode == expected, done.stderr
            # What the other one sends, the first is answerable for.
            assert expected == 0 or f"gateway {liar.url}: {WRONG}".encode() in done.stderr
            shutil.rmtree(ww.home)
            ww.home.mkdir()
    assert (ww.tmp / "0").read_bytes() == content.bytes


def test_a_busy_one_is_asked_again_when_it_wants_it(ww: Ww, content: Content) -> None:
    def busy_twice(liar: Liar, request: Request, wire: Wire) -> None:
        if len(liar.requests) < 3:
            wire.answer(
                b"", "text/plain", "Retry-After: 0", status=(429, 503)[len(liar.requests) % 2]
            )
        else:
            honest(liar, request, wire)

    with Liar(content, busy_twice) as liar:
        done = call(ww, "import", content.address, "-o", "out", gateways=[liar])
        assert done.returncode == 0, done.stderr
        assert len(liar.requests) == 3
    assert (ww.tmp / "out").read_bytes() == content.bytes


def test_one_that_drops_a_connection_is_asked_again(ww: Ww, content: Content) -> None:
    def dropping(liar: Liar, request: Request, wire: Wire) -> None:
        if len(liar.requests) != 1:
            honest(liar, request, wire)

    with Liar(content, dropping) as liar:
        done = call(ww, "import", content.address, "-o", "out", gateways=[liar])
        assert done.returncode == 0, done.stderr
    assert (ww.tmp / "out").read_bytes() == content.bytes


def test_what_follows_an_answer_is_not_taken_for_the_next_one(ww: Ww, content: Content) -> None:
    def smuggling(liar: Liar, request: Request, wire: Wire) -> None:
        if request.format == "car":
            return wire.answer(b"", "text/plain", status=406)
        wire.keep = True
        block = liar.content.blocks[request.cid]
        wire.head(200, f"Content-Type: {RAW_TYPE}", size=len(block))
        wire.send(block)
        wrong = flipped(block)
        wire.head(200, f"Content-Type: {RAW_TYPE}", size=len(wrong))
        return wire.send(wrong)

    with Liar(content, smuggling) as liar, Liar(content) as other:
        done = call(ww, "import", content.address, "-o", "out", gateways=[liar, other])
        assert done.returncode == 0, done.stderr
    assert (ww.tmp / "out").read_bytes() == content.bytes
    check_whole(ww.home)


def test_blocks_in_another_order_or_twice_or_with_others_between_are_used(
    ww: Ww, content: Content
) -> None:
    blocks = list(content.blocks.items())
    other = list(Content(OTHER).blocks.items())
    for number, order in enumerate(
        (
            [pair for pair in blocks for _ in range(3)],
            [pair for both in zip(blocks, other, strict=False) for pair in both],
            blocks[::-1],
            blocks[:3],
        )
    ):
        car = car_of([content.root], order)

        def shuffled(liar: Liar, request: Request, wire: Wire, car: bytes = car) -> None:
            if request.format == "car":
                wire.answer(car, CAR_TYPE)
            else:
                honest(liar, request, wire)

        with Liar(content, shuffled) as liar:
            done = call(ww, "import", content.address, "-o", f"{number}", gateways=[liar])
            assert done.returncode == 0, done.stderr
        assert (ww.tmp / f"{number}").read_bytes() == content.bytes
        # Nothing is kept that nobody has asked for.
        assert check_whole(ww.home) == len(blocks)
        shutil.rmtree(ww.home)
        ww.home.mkdir()


def test_a_liar_with_all_the_sources_before_it_honest_and_incomplete_is_still_not_believed(
    ww: Ww, content: Content
) -> None:
    def without_a_leaf(liar: Liar, request: Request, wire: Wire) -> None:
        if request.format == "raw" and request.cid == liar.content.leaf:
            wire.answer(b"", "text/plain", status=404)
        elif request.format == "car":
            blocks = dict(liar.content.blocks)
            del blocks[liar.content.leaf]
            wire.answer(car_of([liar.content.root], blocks.items()), CAR_TYPE)
        else:
            honest(liar, request, wire)

    with Liar(content, without_a_leaf) as first, Liar(content, of_block(flipped)) as second:
        done = call(ww, "run", content.address, gateways=[first, second])
        assert (done.returncode, done.stdout) == (EXIT_NOT_FOUND, b""), done.stderr
        assert f"block {content.leaf}".encode() in done.stderr
        assert f"gateway {second.url}: {WRONG}".encode() in done.stderr
    assert check_whole(ww.home) == len(content.blocks) - 1


def test_a_file_that_is_larger_than_a_cell_may_be_is_refused_before_it_is_fetched(
    ww: Ww, tmp_path: Path
) -> None:
    # Nobody lies here: whoever has made this file has made it large.
    large = tmp_path / "large"
    with large.open("wb") as out:
        out.truncate(300 << 20)
    content = Content(large, Profile(1, True, 1 << 20, 1024, False))
    large.unlink()
    with Liar(content) as gateway:
        done = call(ww, "run", content.address, gateways=[gateway])
        assert (done.returncode, done.stdout) == (66, b""), done.stderr
        assert len(gateway.requests) == 1


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 with its key, that nobody trusts who is not told to."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        [
            *(need_command("openssl"), "req", "-x509", "-newkey", "ec", "-nodes", "-batch"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2", "-subj", "/CN=ww test"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(path), "-out", str(path.with_name("certificate.pem"))),
        ],
        check=True,
        capture_output=True,
    )
    with path.open("ab") as both:
        both.write(path.with_name("certificate.pem").read_bytes())
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_https_is_spoken_with_a_certificate_that_the_system_trusts_only(
    ww: Ww, content: Content, certificate: Path, tls: ssl.SSLContext
) -> None:
    trust = {"SSL_CERT_FILE": str(certificate.with_name("certificate.pem"))}
    with Liar(content, tls=tls) as gateway:
        done = call(ww, "run", content.address, gateways=[gateway])
        assert (done.returncode, done.stdout) == (EXIT_NOT_FOUND, b""), done.stderr
        assert re.search(f"gateway {gateway.url}: .*certificate", done.stderr.decode())
        assert gateway.requests == []
        done = call(ww, "run", content.address, gateways=[gateway], env=trust)
        assert done.returncode == 0, done.stderr
        # A name that the certificate is not for.
        named = gateway.url.replace("127.0.0.1", "localhost")
        shutil.rmtree(ww.home / "blocks")
        done = ww.run("run", content.address, env={"WW_GATEWAYS": named, **trust})
        assert done.returncode == EXIT_NOT_FOUND, done.stderr


def test_a_redirect_from_https_to_http_is_not_followed(
    ww: Ww, content: Content, certificate: Path, tls: ssl.SSLContext
) -> None:
    trust = {"SSL_CERT_FILE": str(certificate.with_name("certificate.pem"))}
    with Liar(content) as plain:
        to = redirect_to(plain)
        with Liar(content, to, tls=tls) as liar:
            done = call(ww, "run", content.address, gateways=[liar], env=trust)
            assert (done.returncode, done.stdout) == (EXIT_NOT_FOUND, b""), done.stderr
            assert f"it redirects from https to {plain.url}".encode() in done.stderr
        assert plain.requests == []
        # The other way is a good idea.
        with Liar(content, tls=tls) as secure:
            to = redirect_to(secure)
            with Liar(content, to) as liar:
                done = call(ww, "run", content.address, gateways=[liar], env=trust)
                assert done.returncode == 0, done.stderr


def test_one_that_hangs_before_tls_is_given_up(ww: Ww, content: Content) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        named = {"WW_GATEWAYS": f"https://127.0.0.1:{listener.getsockname()[1]}"}
        done = ww.call([sys.executable, "-c", QUICK, "run", content.address], env=named, timeout=30)
        assert (done.returncode, done.stdout) == (EXIT_NOT_FOUND, b""), done.stderr


def test_one_that_accepts_no_connection_is_given_up(ww: Ww, content: Content) -> None:
    # A full queue of connections: the kernel answers no more, and a connection is never made.
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            with suppress(BlockingIOError):
                filling.connect(listener.getsockname())
        named = {"WW_GATEWAYS": f"http://127.0.0.1:{listener.getsockname()[1]}"}
        done = ww.call([sys.executable, "-c", QUICK, "run", content.address], env=named, timeout=30)
        assert (done.returncode, done.stdout) == (EXIT_NOT_FOUND, b""), done.stderr
        assert b"no connection within 0.7 s" in done.stderr


# --- how long, and how much ----------------------------------------------------------------------


def test_the_limits_of_time_are_those_that_are_documented() -> None:
    assert Limits() == (5, 30, 1024)


@pytest.mark.parametrize("lie", [endless_zeros, endless_repetition, endless_header, gzip_bomb])
def test_memory_stays_bounded(ww: Ww, content: Content, lie: Lie) -> None:
    with Liar(content, telling(Case(lie), "car")) as liar:
        command = [sys.executable, "-c", QUICK, "import", content.address]
        measured = [sys.executable, "-c", MEASURE, *command]
        done = ww.call(measured, env={"WW_GATEWAYS": liar.url})
        assert done.returncode == EXIT_NOT_FOUND, done.stderr
    assert int(done.stdout) < 80 * 1024


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_one_that_hangs(
    ww: Ww, content: Content, sign: signal.Signals
) -> None:
    with Liar(content, hanging) as liar:
        # With the real limits, which are longer than this test may take.
        with ww.popen("run", content.address, env={"WW_GATEWAYS": liar.url}) as process:
            wait_for(lambda: bool(liar.requests), "it is asked")
            process.send_signal(sign)
            _, err = process.communicate(timeout=20)
        assert process.returncode == 128 + sign, err
        assert b"Traceback" not in err
