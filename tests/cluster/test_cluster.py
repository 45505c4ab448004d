"""Cells on a real scheduler and real workers, which are processes on loopback."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, as_completed
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client

from runner.cells import FetchOptions, open_cell
from runner.cluster import ClusterError, ClusterExecutor, ClusterResult
from runner.cluster import executor as executor_module
from runner.content.blockstore import DamagedBlock
from runner.errors import EXIT_NOT_FOUND, EXIT_USAGE, WwError
from sandbox import (
    Cell,
    CellExecutor,
    CellFailed,
    CellRejected,
    GrantError,
    Limits,
    Outcome,
    Result,
    grant,
)
from tests.cluster.machines import PATIENCE, Machines, Shelf, address_of, jobs_of, wait_until
from tests.conftest import EXAMPLES, REPO, Ww

HELLO = EXAMPLES / "hello" / "hello.wasm"


def done(executor: ClusterExecutor, *args: object, **options: object) -> ClusterResult:
    """Run a cell to its end."""
    return executor.submit(*args, **options).result(PATIENCE)  # type: ignore[arg-type]


# --- cells travel as addresses -------------------------------------------------------------------


def test_each_worker_fetches_a_cell_once_and_keeps_it_in_its_own_store(
    machines: Machines, cluster: ClusterExecutor, shelf: Shelf
) -> None:
    for name in ("one", "two"):
        before = shelf.asked(shelf.fresh)
        only = ClusterExecutor(cluster.client, workers=[address_of(cluster.client, name)])
        results = [done(only, shelf.fresh, ["there"]) for _ in range(2)]
        assert [result.stdout for result in results] == [
            b"Hello from a cell. there\nGranted: ()\n"
        ] * 2
        assert {result.worker for result in results} == {address_of(cluster.client, name)}
        assert shelf.asked(shelf.fresh) == before + 1
        stored = {"WW_HOME": str(machines.store(name))}
        cell = open_cell(shelf.fresh, stored, FetchOptions(offline=True))
        with open(cell, "rb") as file:
            assert file.read() == HELLO.read_bytes()


def test_what_a_gateway_has_damaged_is_refused_by_the_same_error_as_for_one_machine_and_once(
    machines: Machines, cluster: ClusterExecutor, shelf: Shelf, ww: Ww
) -> None:
    alone = ww.run("run", "--gateway", shelf.url, shelf.damaged)
    asked = shelf.asked(shelf.damaged)
    error = cluster.submit(shelf.damaged).exception(PATIENCE)
    assert isinstance(error, WwError)
    assert "it sent other bytes than those of block" in str(error)
    (home,) = (h for h in map(machines.store, ("one", "two")) if str(h) in str(error))
    said = f"ww: error: {error}\n".replace(str(home), str(ww.home))
    assert alone.stderr.decode().splitlines(keepends=True)[-1] == said
    assert alone.returncode == error.code == EXIT_NOT_FOUND
    assert error.__notes__[0].removeprefix("on the worker ").startswith("tcp://127.0.0.1:")
    # One worker has asked as often as the one machine: nobody has tried it again.
    assert shelf.asked(shelf.damaged) == 2 * asked


def test_a_cell_that_nobody_has_and_one_that_is_no_program_are_refused(
    cluster: ClusterExecutor, shelf: Shelf
) -> None:
    missing = cluster.submit(shelf.missing).exception(PATIENCE)
    assert isinstance(missing, WwError)
    assert missing.code == EXIT_NOT_FOUND
    refused = cluster.submit(shelf.text).exception(PATIENCE)
    assert isinstance(refused, CellRejected)
    assert refused.cell == shelf.text
    assert shelf.asked(shelf.text) == 1


def test_what_has_no_address_is_refused_before_it_travels(
    cluster: ClusterExecutor, tmp_path: Path
) -> None:
    for cell in (str(HELLO), HELLO, HELLO.read_bytes(), 0, "/ipns/example.org", "/ipfs/nonsense"):
        with pytest.raises(WwError) as caught:
            cluster.submit(cell)
        assert caught.value.code == EXIT_USAGE


def test_a_local_cell_is_imported_if_that_was_asked_for(
    machines: Machines, cluster: ClusterExecutor
) -> None:
    store = machines.store("one")
    importing = ClusterExecutor(
        cluster.client,
        import_cells=True,
        environ={"WW_HOME": str(store)},  # that this worker can see
        workers=[address_of(cluster.client, "one")],
    )
    plain = HELLO.read_bytes()
    # A section that means nothing, so that no gateway has it.
    other = plain + b"\0\5\4mine"
    with Cell.load(other, "other.wasm") as cell:
        for form in (other, cell):
            assert done(importing, form).stdout.startswith(b"Hello")
    assert len(list((store / "pins").iterdir())) == 1


# --- bytes in, bytes out -------------------------------------------------------------------------


def test_files_go_in_and_come_back(cluster: ClusterExecutor, shelf: Shelf, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(b"from a file")
    for source in (b"from bytes", given, str(given)):
        result = done(
            cluster, shelf.cat, grants=[grant("input", source), grant("output", b"", mode="w")]
        )
        expected = source if isinstance(source, bytes) else b"from a file"
        assert (result.exit_code, result.files) == (0, {"output": expected})


def test_a_file_that_was_changed_comes_back_whole_and_one_for_reading_does_not(
    cluster: ClusterExecutor, shelf: Shelf
) -> None:
    grants = [grant("book", b"x" * 100_000 + b"y", mode="rw"), grant("other", b"z", mode="r")]
    result = done(cluster, shelf.busy, ["edit"], grants)
    assert result.files == {"book": b"x" * 100_000 + b"y" + b"x"}


def test_standard_streams_and_the_environment_are_bytes_and_texts(
    cluster: ClusterExecutor, shelf: Shelf, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    given.write_bytes(b"\0\xff" * 50_000)
    for source in (given, given.read_bytes()):
        result = done(cluster, shelf.busy, ["copy"], stdin=source, env={"COLOUR": "red"})
        assert (result.stdout, result.stderr) == (b"\0\xff" * 50_000, b"red\n")


def test_what_means_something_on_this_machine_only_is_refused(
    cluster: ClusterExecutor, shelf: Shelf, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    given.write_bytes(b"x")
    with given.open("rb") as file:
        offers = [
            grant("a", file.fileno()),
            grant("a", file),
            grant("a", given, mode="w"),
            grant("a", given, mode="rw"),
            grant("a", tmp_path),
            grant("a", tmp_path, guest="/a"),
        ]
        for offer in offers:
            with pytest.raises(GrantError):
                cluster.submit(shelf.hello, grants=[offer])
        with pytest.raises(GrantError):
            cluster.submit(shelf.hello, stdin=file)
    with pytest.raises(FileNotFoundError):
        cluster.submit(shelf.hello, grants=[grant("a", tmp_path / "none")])


def test_a_grant_that_is_moved_comes_back_as_any_other(
    cluster: ClusterExecutor, shelf: Shelf
) -> None:
    grants = [grant("input", b"moved", move=True), grant("output", b"", mode="w", move=True)]
    assert done(cluster, shelf.cat, grants=grants).files == {"output": b"moved"}


WRONG_TYPES = {
    "args-is-text": ({"args": "abc"}, "write \\[text\\]"),
    "args-are-bytes": ({"args": b"abc"}, "an argument has to be of type str, and not int"),
    "arg-is-int": ({"args": ["a", 1]}, "an argument has to be of type str, and not int"),
    "grant-is-text": ({"grants": ["a"]}, "a grant has to be of type Offer, and not str"),
    "grant-of-none": ({"grants": [grant("a", None)]}, "and not of type NoneType"),  # type: ignore[arg-type]
    "grants-are-one": ({"grants": grant("a", b"")}, "write \\[offer\\]"),
    "env-value-is-int": ({"env": {"a": 1}}, "the variable a has to be of type str, and not int"),
    "env-key-is-bytes": ({"env": {b"a": "1"}}, "the name of a variable"),
    "env-is-list": ({"env": ["a=1"]}, "env has to be a mapping"),
    "limits-is-int": ({"limits": 5}, "limits has to be of type Limits, and not int"),
    "limits-is-none": ({"limits": None}, "limits has to be of type Limits, and not NoneType"),
    "invoke-is-bytes": ({"invoke": b"f"}, "invoke has to be of type str"),
    "trap-is-int": ({"unknown_imports_trap": 1}, "has to be of type bool"),
    "stdin-is-none": ({"stdin": None}, "stdin has to be bytes or a path, and not of type NoneType"),
    "stdin-is-bytearray": ({"stdin": bytearray(b"x")}, "stdin has to be bytes or a path"),
    "unknown-option": ({"colour": "red"}, "'colour' is not an option of a run"),
}


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_what_is_not_of_its_type_is_refused_before_it_travels(
    cluster: ClusterExecutor, shelf: Shelf, case: str
) -> None:
    given, said = WRONG_TYPES[case]
    with pytest.raises(TypeError, match=said):
        cluster.submit(shelf.hello, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def alone() -> Iterator[CellExecutor]:
    """What runs cells on this machine."""
    with CellExecutor(1, cache=None, jails=0) as executor:
        yield executor


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_what_is_not_of_its_type_is_refused_on_one_machine_just_so(
    alone: CellExecutor, case: str
) -> None:
    given, _ = WRONG_TYPES[case]
    with pytest.raises(TypeError):
        alone.submit(HELLO, **given)  # type: ignore[arg-type]


VALUES_THAT_CANNOT_BE = {
    "network-all": {"network": "all"},
    "network-empty": {"network": ""},
    "network-none": {"network": None},
    "network-number": {"network": 5},
    "nul": {"args": ["\0"]},
    "surrogate": {"args": ["\udc80"]},
    "much": {"args": ["x" * (8 << 20), "y"]},
    "kept-variable": {"env": {"WW_FDS": "x"}},
    "no-variable": {"env": {"a=b": "x"}},
    "negative-limit": {"limits": Limits(cpu=-1)},
    "limit-of-text": {"limits": Limits(memory="1")},  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", VALUES_THAT_CANNOT_BE)
def test_a_value_that_cannot_be_is_refused_in_the_same_words_as_on_one_machine(
    alone: CellExecutor, cluster: ClusterExecutor, shelf: Shelf, case: str
) -> None:
    given = VALUES_THAT_CANNOT_BE[case]
    with pytest.raises(ValueError) as there:
        cluster.submit(shelf.hello, **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError) as here:
        alone.submit(HELLO, **given)  # type: ignore[arg-type]
    assert str(here.value) == str(there.value) != ""


AGAINST_THE_RULES = (
    [grant("n" * 300, b"bytes")],
    [grant("n" * 300, b"bytes", mode="rw")],
    [grant("", b"")],
    [grant("a-b", b""), grant("a_b", b"")],
    [grant("a", b"", target=70_000)],
    [grant("a", b"", target=9), grant("b", b"", target=9)],
    [grant("proc", b"", pathlink=True)],
    [grant("a", b"", mode="rwx")],  # type: ignore[arg-type]
    [grant("a", b"", mode=["r"])],  # type: ignore[arg-type]
    [grant(5, b"")],  # type: ignore[arg-type]
    [grant("a", b"", type=5)],  # type: ignore[arg-type]
    [grant("a", b"", target="9")],  # type: ignore[arg-type]
    [grant("a", b"", target=True)],
    [grant("a", b"", move=1)],  # type: ignore[arg-type]
    [grant("a", b"", guest=1)],  # type: ignore[arg-type]
    [grant("a", b"", guest="..")],
)


@pytest.mark.parametrize("number", range(len(AGAINST_THE_RULES)))
def test_grants_that_do_not_keep_the_rules_are_refused_before_they_travel_as_on_one_machine(
    alone: CellExecutor, cluster: ClusterExecutor, shelf: Shelf, number: int
) -> None:
    grants = AGAINST_THE_RULES[number]
    with pytest.raises(GrantError) as there:
        cluster.submit(shelf.hello, grants=grants)
    assert there.value.usage
    with pytest.raises(GrantError) as here:
        alone.submit(HELLO, grants=grants)
    assert here.value.usage
    # A target above 65534 is refused in both places; how many numbers there are differs.
    assert (here.value.where, here.value.what) == (there.value.where, there.value.what) or (
        grants[0].target == 70_000
    )


def test_more_bytes_than_the_scheduler_is_to_keep_are_refused(
    cluster: ClusterExecutor, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "MAX_BYTES", 10)
    given = tmp_path / "given"
    given.write_bytes(b"x" * 11)
    with pytest.raises(ValueError, match="11 bytes"):
        cluster.submit(shelf.hello, stdin=given)
    with pytest.raises(ValueError, match="12 bytes"):
        cluster.submit(shelf.hello, grants=[grant("a", b"x" * 6)], stdin=b"x" * 6)
    assert done(cluster, shelf.busy, ["copy"], stdin=b"x" * 10).stdout == b"x" * 10


# --- how a cell ends -----------------------------------------------------------------------------


def test_every_end_of_a_cell_is_a_result(cluster: ClusterExecutor, shelf: Shelf) -> None:
    assert done(cluster, shelf.busy, ["exit", "7"]).exit_code == 7
    trapped = done(cluster, shelf.busy, ["trap"])
    assert (trapped.outcome.kind, trapped.exit_code) == ("trap", None)
    with pytest.raises(CellFailed):
        trapped.check()
    assert done(cluster, shelf.hello).check().ok


def test_the_error_of_a_cell_that_failed_has_the_whole_result_and_can_be_pickled() -> None:
    failed = ClusterResult(Outcome("exit", 3), b"out", b"err\n", {"a": b"b"}, "tcp://there")
    with pytest.raises(CellFailed) as caught:
        failed.check()
    again = pickle.loads(pickle.dumps(caught.value))
    for error in (caught.value, again):
        assert error.result == failed
        assert str(error) == "exit code 3: err"


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("exit", 7),
        Outcome("limit", limit="wall"),
        Outcome("signal", 9),
        Outcome("trap", what="wasm trap: unreachable"),
    ],
    ids=lambda outcome: outcome.kind,
)
def test_a_result_describes_the_end_as_on_one_machine(outcome: Outcome) -> None:
    said = ClusterResult(outcome, b"", b"", {}, "tcp://there").describe()
    assert said == Result(outcome, b"", b"").describe()


def test_all_that_a_result_of_one_machine_tells_a_result_of_a_cluster_tells() -> None:
    def told(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert told(Result) <= told(ClusterResult)


def test_limits_hold_on_the_workers(cluster: ClusterExecutor, shelf: Shelf) -> None:
    spun = done(cluster, shelf.busy, ["spin"], limits=Limits(wall=0.3))
    assert (spun.outcome.kind, spun.outcome.limit) == ("limit", "wall")
    assert spun.usage is not None
    written = done(cluster, shelf.busy, ["copy"], stdin=b"x" * 5000, limits=Limits(output=1000))
    assert written.outcome.limit == "output"
    assert len(written.stdout) <= 1000


def test_a_cell_cannot_blow_up_a_file_beyond_what_it_may_write(
    cluster: ClusterExecutor, shelf: Shelf
) -> None:
    book = grant("book", b"x", mode="rw")
    result = done(cluster, shelf.busy, ["stretch", "2000000000"], [book])
    assert (result.outcome.limit, result.files) == ("output", {"book": b"x"})


# --- cancelling ----------------------------------------------------------------------------------


def test_cells_that_are_cancelled_are_killed_and_give_their_places_to_others(
    cluster: ClusterExecutor, shelf: Shelf
) -> None:
    spinning = [cluster.submit(shelf.busy, ["spin"]) for _ in range(4)]
    wait_until(lambda: all(jobs_of(cluster.client, n) == 2 for n in ("one", "two")), "all run")
    waiting = cluster.submit(shelf.hello)
    for index, future in enumerate(spinning):
        assert future.cancel() if index % 2 else future.kill()
        assert future.cancelled()
        with pytest.raises(CancelledError):
            future.result()
    assert [future.cancelled() for future in as_completed(spinning, PATIENCE)] == [True] * 4
    assert waiting.result(PATIENCE).ok
    assert not waiting.cancel()
    assert not waiting.kill()
    # As many at once as there are places: not one is still taken.
    assert all(r.ok for r in cluster.map(shelf.busy, [["sleep", "10"]] * 8, timeout=PATIENCE))


def test_a_fetch_is_given_up_with_the_last_who_waits_for_it(
    cluster: ClusterExecutor, shelf: Shelf
) -> None:
    futures = [cluster.submit(shelf.stuck) for _ in range(4)]
    wait_until(lambda: shelf.hanging == 2, "each worker asks")
    for future in futures:
        future.cancel()
    assert all(r.ok for r in cluster.map(shelf.busy, [["sleep", "10"]] * 8, timeout=PATIENCE))
    wait_until(lambda: shelf.hanging == 0, "the connections are closed")


def test_cells_that_wait_are_kept_by_the_scheduler_and_not_by_workers_that_may_be_lost(
    cluster: ClusterExecutor, shelf: Shelf
) -> None:
    futures = [cluster.submit(shelf.busy, ["spin"]) for _ in range(20)]
    try:

        def known() -> tuple[int, int]:
            counts: tuple[int, int] = cluster.client.run_on_scheduler(
                lambda dask_scheduler: (len(dask_scheduler.tasks), len(dask_scheduler.queued))
            )
            return counts

        wait_until(lambda: known()[0] == 20, "all are known")
        # Until there are twice as many as the cluster has threads, they are handed out at once.
        assert known()[1] >= 20 - 2 * 4
    finally:
        for future in reversed(futures):
            future.cancel()


# --- several -------------------------------------------------------------------------------------


def test_map_gives_results_in_the_order_of_the_inputs(
    cluster: ClusterExecutor, shelf: Shelf
) -> None:
    waits = (100, 0, 50, 0, 10, 0)
    args = [["sleep", str(wait), f"{n}"] for n, wait in enumerate(waits)]
    lines = [r.stdout for r in cluster.map(shelf.busy, args, timeout=PATIENCE)]
    assert lines == [b"%d\n" % n for n in range(len(waits))]
    texts = [b"a", b"b", b"c"]
    copies = cluster.map(shelf.busy, [["copy"]] * 9, stdins=texts, timeout=PATIENCE)
    assert [result.stdout for result in copies] == texts
    inputs = [[grant("input", text), grant("output", b"", mode="w")] for text in texts]
    out = [r.files["output"] for r in cluster.map(shelf.cat, grants=inputs, timeout=PATIENCE)]
    assert out == texts
    with pytest.raises(TypeError):
        cluster.map(shelf.hello)


def test_a_map_that_ends_early_cancels_the_rest(cluster: ClusterExecutor, shelf: Shelf) -> None:
    with pytest.raises(TimeoutError):
        list(cluster.map(shelf.busy, [["spin"]] * 6, timeout=0.2))
    args = [["exit", "3"], ["spin"], ["spin"]]
    results = cluster.map(shelf.busy, args, timeout=PATIENCE)
    assert next(results).exit_code == 3
    results.close()  # type: ignore[attr-defined]
    assert all(r.ok for r in cluster.map(shelf.busy, [["sleep", "10"]] * 8, timeout=PATIENCE))


def test_a_map_that_times_out_leaves_nothing_that_its_executor_would_wait_for(
    cluster: ClusterExecutor, shelf: Shelf
) -> None:
    other = ClusterExecutor(cluster.client)
    try:
        with pytest.raises(TimeoutError):
            next(other.map(shelf.busy, [["spin"]], timeout=0.2))
        closing = threading.Thread(target=other.shutdown, daemon=True)
        closing.start()
        closing.join(PATIENCE)
        assert not closing.is_alive()
    finally:
        other.shutdown(kill=True)
    wait_until(lambda: not any(jobs_of(cluster.client, n) for n in ("one", "two")), "it is killed")


def test_many_threads_may_submit_and_each_result_comes_once(
    cluster: ClusterExecutor, shelf: Shelf
) -> None:
    heard: list[bytes] = []

    def submit(number: int) -> None:
        for part in range(5):
            future = cluster.submit(shelf.busy, ["sleep", "0", f"{number} {part}"])
            future.add_done_callback(lambda f: heard.append(f.result().stdout))
            future.result(PATIENCE)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [b"%d %d\n" % (number, part) for number in range(4) for part in range(5)]
    wait_until(lambda: len(heard) >= len(expected), "all are heard of")
    assert sorted(heard) == expected


def test_an_executor_that_is_closed_takes_no_cells_and_leaves_the_client_open(
    cluster: ClusterExecutor, shelf: Shelf
) -> None:
    with ClusterExecutor(cluster.client) as other:
        future = other.submit(shelf.busy, ["sleep", "50", "x"])
    assert future.done()
    assert future.result().stdout == b"x\n"
    with pytest.raises(RuntimeError):
        other.submit(shelf.hello)
    other.shutdown()
    impatient = ClusterExecutor(cluster.client)
    spinning = impatient.submit(shelf.busy, ["spin"])
    impatient.shutdown(cancel_futures=True)
    assert spinning.cancelled()
    assert done(cluster, shelf.hello).ok


def test_a_block_that_an_error_ends_waits_for_its_cells_as_on_one_machine(
    cluster: ClusterExecutor, shelf: Shelf
) -> None:
    with suppress(KeyError), ClusterExecutor(cluster.client) as other:
        future = other.submit(shelf.busy, ["sleep", "300", "x"])
        raise KeyError
    assert future.done()
    assert future.result().stdout == b"x\n"


def test_it_is_an_executor_as_that_of_one_machine_and_its_futures_have_the_cell_s_name(
    cluster: ClusterExecutor, shelf: Shelf
) -> None:
    assert isinstance(cluster, Executor)
    future = cluster.submit(shelf.text)
    error = future.exception(PATIENCE)
    assert isinstance(error, CellRejected)
    assert future.name == error.cell == shelf.text


def test_no_cell_hangs_when_its_client_is_closed(machines: Machines, shelf: Shelf) -> None:
    with Client(machines.address, set_as_default=False) as client:
        executor = ClusterExecutor(client)
        futures = [executor.submit(shelf.busy, ["spin"]) for _ in range(6)]
    for future in futures:
        assert isinstance(future.exception(PATIENCE), ClusterError)


def test_a_worker_that_cannot_run_cells_does_not_start(
    machines: Machines, cluster: ClusterExecutor
) -> None:
    machines.add("three", environment={"WW_CACHE_SIZE": "nonsense"})
    assert machines.wait("three") != 0
    assert "WW_CACHE_SIZE" in machines.log("three")
    assert address_of(cluster.client, "three") == ""


# --- what is needed for it -----------------------------------------------------------------------


def test_all_that_is_handed_out_can_be_pickled() -> None:
    error = ClusterError("/ipfs/x", "it is lost", hint="look")
    error.add_note("a note")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.code, again.__notes__) == (str(error), error.code, ["a note"])
    damaged = DamagedBlock("block x", "damaged")
    damaged.what += "; and more"
    again = pickle.loads(pickle.dumps(damaged))
    assert type(again) is DamagedBlock
    assert str(again) == "block x: damaged; and more"
    result = ClusterResult(Outcome("exit", 3), b"out", b"err", {"a": b"b"}, "tcp://there")
    assert pickle.loads(pickle.dumps(result)) == result


def test_nothing_of_dask_is_imported_where_no_cluster_is_asked_for() -> None:
    code = (
        "import sys, runner.__main__, runner.cli, runner.supervise, runner.content.sources, sandbox"
        "\nsys.exit(any(m.split('.')[0] in ('dask', 'distributed') for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)


def test_without_dask_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['distributed'] = None; import runner.cluster"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'wetware[dask]'" in done.stderr.splitlines()[-1]


def test_an_interrupt_during_a_submission_leaves_nothing_to_wait_for(
    cluster: ClusterExecutor, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = cluster.client

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    # Before Dask has the job, and when it has it and nobody follows it yet.
    for moment in ("before", "after"):
        executor = ClusterExecutor(client)
        with monkeypatch.context() as patched:
            if moment == "before":
                patched.setattr(client, "submit", interrupted)
            else:
                patched.setattr(executor, "_loop", SimpleNamespace(add_callback=interrupted))
            with pytest.raises(KeyboardInterrupt):
                executor.submit(shelf.hello)
        ended = threading.Thread(target=executor.shutdown, daemon=True)
        ended.start()
        ended.join(PATIENCE)
        assert not ended.is_alive()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1", "Invalid url scheme"),
        ("", "Invalid url scheme"),
        ("tcp://", "missing port number"),
        ("tcp://127.0.0.1", "missing port number"),
        ("foo://x:1", "unknown address scheme"),
        ("tls://127.0.0.1:1", "there are no certificate and key for it"),
    ],
)
def test_what_is_no_address_is_refused_at_once(address: str, said: str) -> None:
    before = threading.active_count()
    with pytest.raises(ClusterError) as caught:
        ClusterExecutor(address)
    assert caught.value.where == f"scheduler {address}"
    assert said in caught.value.what
    assert "\n" not in str(caught.value)
    assert threading.active_count() == before  # no client was made
