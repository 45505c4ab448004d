"""Rows of how cost grows with the work. Our own figures are compared with each other."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from scripts.benchmarks.contest import Comparison, Measure, Missing, Row, Target
from scripts.benchmarks.setting import Setting, contestant
from scripts.benchmarks.startup import GREETING, PEER, side_by_side, timed


def _growth(names: list[str], sizes: tuple[int, ...]) -> list[Comparison]:
    """Return the comparisons of each size with the one before: at most as many times as much."""
    return [
        Comparison(names[at], names[at - 1], Target(sizes[at] / sizes[at - 1]))
        for at in range(1, len(sizes))
    ]


@contextmanager
def grants(setting: Setting) -> Iterator[Row]:
    """Grant more and more descriptors."""
    sizes = setting.choose((1, 10), (1, 10, 100), (1, 10, 100))
    names = [f"library, {size} grants" for size in sizes]
    with (
        closing(setting.ours.open(str(setting.cells.hello))) as cell,
        setting.ours.spawner() as spawner,
    ):
        yield Row(
            "grants",
            "a hello cell with so many descriptors granted",
            "s",
            {
                name: partial(cell.once, spawner, GREETING, more=size)
                for name, size in zip(names, sizes, strict=True)
            },
            _growth(names, sizes),
            setting.choose(1, 30, 100),
        )


@contextmanager
def at_once(setting: Setting) -> Iterator[Row]:
    """Run more and more cells at the same time."""
    sizes = setting.choose((1, 2), (1, 10, 100), (1, 10, 100))
    hello = setting.cells.hello
    contestants: dict[str, Measure | Missing] = {}
    names = [f"library, {size} cells" for size in sizes]
    peers = [f"{PEER}, {size} cells" for size in sizes]
    with (
        closing(setting.ours.open(str(hello))) as cell,
        setting.ours.spawner() as spawner,
        ExitStack() as stack,
    ):
        lanes = [stack.enter_context(closing(spawner.connect())) for _ in range(sizes[-1])]
        work = [partial(cell.once, lane, GREETING) for lane in lanes]

        def peer(size: int) -> Measure:
            once = timed(setting.peers.jailed("bwrap", hello), GREETING)
            return lambda: side_by_side([once] * size, 1)

        for size, name, other in zip(sizes, names, peers, strict=True):
            contestants[name] = partial(side_by_side, work[:size], 1)
            contestants[other] = contestant(partial(peer, size))
        yield Row(
            "at-once",
            "so many hello cells at once, until the last has ended",
            "s",
            contestants,
            _growth(names, sizes) + [Comparison(*pair) for pair in zip(names, peers, strict=True)],
            setting.choose(1, 7, 15),
        )


@contextmanager
def size(setting: Setting) -> Iterator[Row]:
    """Run larger and larger cells."""
    sizes = setting.choose((1, 2), (1, 10, 100), (1, 10, 100))
    contestants: dict[str, Measure | Missing] = {}
    names = [f"ww run, {mib} MiB" for mib in sizes]
    peers = [f"{PEER}, {mib} MiB" for mib in sizes]

    def ours(address: str) -> float:
        ran = setting.ours.run(address)
        if ran.output != b"hello\n":
            raise RuntimeError(f"it wrote {ran.output[:200]!r}")
        return ran.seconds

    for mib, name, other in zip(sizes, names, peers, strict=True):
        cell = setting.cells.large(mib)
        contestants[name] = partial(ours, setting.ours.export(cell))
        contestants[other] = contestant(
            lambda cell=cell: timed(setting.peers.jailed("bwrap", cell), b"hello\n")  # type: ignore[misc]
        )
    yield Row(
        "size",
        "a cell with so many MiB of data, by its address, cached, from the command line",
        "s",
        contestants,
        _growth(names, sizes) + [Comparison(*pair) for pair in zip(names, peers, strict=True)],
        setting.choose(1, 9, 25),
    )
