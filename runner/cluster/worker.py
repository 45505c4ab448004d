"""The worker's side: fetch a cell by its address, verify it, run it, and send back what came out.

One :class:`Cells` for each worker holds the sandbox, and the cells that were fetched. It is made
when the first cell comes, or by :mod:`runner.cluster.preload` when the worker starts, and goes with
the worker.
"""

import fcntl
import os
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from typing import TYPE_CHECKING, cast

import distributed
from dask.typing import Key
from distributed import Reschedule, WorkerPlugin
from distributed.core import Status

from runner.cells import FetchOptions
from runner.cluster.job import MAX_BYTES, Answer, ClusterError, ClusterResult, Job
from runner.errors import WwError
from runner.spawners import cache_size
from sandbox import Cell, CellExecutor, CellFuture, Limits, Result, SandboxError

if TYPE_CHECKING:
    from distributed import Worker

NAME = "wetware"
"""What a worker knows :class:`Cells` by."""

_MOST_CACHED = 512 << 20  # bytes of cells that a worker keeps in memory for the next run
_TICK = 0.1  # seconds between two looks whether a job that waits has been released
# A function that returns at once: (module (memory (export "memory") 1) (func (export "_start"))).
_SMALLEST = (
    b"\0asm\1\0\0\0\1\4\1\x60\0\0\3\2\1\0\5\3\1\0\1\7\x13\2\6memory\2\0\6_start\0\0\x0a\4\1\2\0\x0b"
)
_ACTIVE = (Status.running, Status.paused, Status.closing_gracefully)
# With these, the memory is shared with the cell and not copied again.
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_WRITABLE = ("w", "rw")

_making = threading.Lock()


def run_job(job: Job) -> Answer:
    """Run a cell on the worker that calls this, in one of its threads.

    Raises:
        Reschedule: Nobody waits for it here any more: the job was cancelled, or the worker closes.
    """
    worker = distributed.get_worker()
    return cells_of(worker).run(worker.get_current_task(), job)


def cells_of(worker: "Worker") -> "Cells":
    """Return what runs cells on a worker, made now if there is none; not for its event loop.

    Raises:
        Reschedule: The worker closes.
    """

    async def add() -> Cells:
        if worker.status not in _ACTIVE:
            raise Reschedule
        found = worker.plugins.get(NAME)
        if not isinstance(found, Cells):
            found = Cells()
            await worker.plugin_add(plugin=found, name=NAME, catch_errors=False)
        return found

    found = worker.plugins.get(NAME)
    if isinstance(found, Cells):
        return found
    with _making:
        made: Cells = distributed.utils.sync(worker.loop, add)
    return made


class Cells(WorkerPlugin):
    """Runs cells on one worker, as many at a time as it has threads."""

    idempotent = True

    def __init__(self) -> None:
        # The event loop takes it, too: nobody holds it while he waits for something.
        self._guard = threading.Lock()
        self._starting = threading.Lock()
        self._runs: dict[Key, _Run] = {}
        self._released: set[Key] = set()  # keys that the worker executes for nobody
        self._closed = False
        self._executor: CellExecutor | None = None
        self._cells = _Cached()
        self._address = ""
        self._threads = 1

    # --- as a plugin: all this is called by the event loop ---

    def setup(self, worker: "Worker") -> None:
        """Get to know the worker."""
        self._address = worker.address
        self._threads = worker.state.nthreads

    def teardown(self, worker: "Worker") -> None:
        """Kill what runs, and close the sandbox; the process does not end before that is done.

        The worker must not wait for it here: one that is told to close by two at once, by a signal
        and by its scheduler, cancels what waits in there, and would be closing forever.
        """
        with self._guard:
            self._closed = True
            runs, executor = list(self._runs.values()), self._executor
        for run in runs:
            run.stop()
        if executor is not None:
            threading.Thread(
                target=executor.shutdown, kwargs={"kill": True}, name="ww-shutdown"
            ).start()
        self._cells.clear()

    def transition(self, key: Key, start: str, finish: str, **_: object) -> None:
        """Kill a cell whose job was cancelled, or is the business of another worker now.

        Dask cannot end what runs in a thread. It only takes note that nobody wants the result, and
        would let the cell have its time.
        """
        with self._guard:
            if start == "executing" and finish == "released":
                self._released.add(key)
                run = self._runs.get(key)
            else:
                self._released.discard(key)
                run = None
        if run is not None:
            run.stop()

    # --- for the worker's threads ---

    def run(self, key: Key, job: Job) -> Answer:
        """Run a cell and wait for its end.

        Args:
            key: What the worker calls the job.
            job: The job.

        Raises:
            Reschedule: As :func:`run_job`.
        """
        run = _Run()
        with self._guard:
            if self._closed or key in self._released:
                raise Reschedule
            self._runs[key] = run
        try:
            return Answer(self._run(run, job), self._address)
        except (WwError, SandboxError, OSError, ValueError) as error:
            if run.stopped:
                raise Reschedule from None
            return Answer(_kept(error), self._address)
        except (TypeError, AttributeError) as error:
            if run.stopped:
                raise Reschedule from None
            # Not what the submitter's side of this release would have let through.
            text = " ".join(str(error).split())
            found = ClusterError(
                job.address,
                f"the worker cannot make a run of this job: {type(error).__name__}: {text}",
                hint="have the same release of wetware on all machines; if it is, report this",
            )
            return Answer(found, self._address)
        finally:
            with self._guard:
                del self._runs[key]

    def check(self) -> None:
        """Start the sandbox, and run the smallest of all cells in it.

        Raises:
            SandboxError: This machine does not give what a jail needs.
            OSError: The sandbox cannot be started.
            WwError: A variable is not well formed.
        """
        self._started().submit(_SMALLEST).result().check()

    def _run(self, run: "_Run", job: Job) -> ClusterResult:
        cell = self._cells.get(job.address, run)
        with ExitStack() as stack:
            files: dict[str, FileIO] = {}
            offers = []
            for offer in job.grants:
                if offer.mode in _WRITABLE:
                    files[offer.name] = file = stack.enter_context(_memory(offer.source))
                    # Not given away, whatever was asked for: it is to be read afterwards.
                    offers.append(offer._replace(source=file, move=False))
                else:
                    offers.append(offer)
            executor = self._started()
            result = run.wait(lambda: executor.submit(cell, job.args, offers, **job.options))
            _check_size(job, result, files.values())
            return ClusterResult(
                result.outcome,
                result.stdout,
                result.stderr,
                {name: _content(file) for name, file in files.items()},
                self._address,
            )

    def _started(self) -> CellExecutor:
        with self._starting:
            with self._guard:
                self._check_open()
                if self._executor is not None:
                    return self._executor
            executor = CellExecutor(self._threads, cache_size=cache_size(os.environ))
            try:
                with self._guard:
                    self._check_open()
                    self._executor = executor
            except Reschedule:  # closed before there was anything to shut down
                executor.shutdown()
                raise
            return executor

    def _check_open(self) -> None:
        if self._closed:
            raise Reschedule


class _Run:
    """One cell, from the start of its fetch to its end."""

    def __init__(self) -> None:
        self.stopped = False
        self._guard = threading.Lock()
        self._future: CellFuture | None = None

    def stop(self) -> None:
        """Kill the cell, or do not start it; from any thread, which does not wait for that."""
        with self._guard:  # which nobody holds while he waits for something
            self.stopped = True
            future = self._future
        if future is not None:
            threading.Thread(target=future.kill, name="ww-kill", daemon=True).start()

    def check(self) -> None:
        """Go on, unless it was stopped.

        Raises:
            Reschedule: It was.
        """
        if self.stopped:
            raise Reschedule

    def wait(self, start: Callable[[], CellFuture]) -> Result:
        """Start the cell and return its result.

        Raises:
            Reschedule: The run was stopped, before or meanwhile.
        """
        self.check()
        try:
            future = start()
            with self._guard:
                self._future = future
                stopped = self.stopped
            if stopped:  # before there was anything to kill
                future.kill()
            return future.result()
        except BaseException:
            self.check()
            raise


class _Cached:
    """The cells that were used last, by their addresses. What a CID names never changes."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._cells: OrderedDict[str, Cell] = OrderedDict()
        self._fetching: dict[str, threading.Lock] = {}

    def clear(self) -> None:
        with self._guard:
            self._cells.clear()

    def get(self, address: str, run: _Run) -> Cell:
        """Return a cell, fetched and verified. What several runs need is fetched once.

        Raises:
            WwError: As :func:`runner.cells.open_cell`.
            Reschedule: The run was stopped.
        """
        with self._guard:
            fetching = self._fetching.setdefault(address, threading.Lock())
        while not fetching.acquire(timeout=_TICK):
            run.check()
        try:
            with self._guard:
                cell = self._cells.get(address)
                if cell is not None:
                    self._cells.move_to_end(address)
                    return cell
            cell = _fetch(address, run)
            with self._guard:
                self._cells[address] = cell
                while len(self._cells) > 1 and self._size() > _MOST_CACHED:
                    # The memory goes when the last run has done with it.
                    old, _ = self._cells.popitem(last=False)
                    self._fetching.pop(old, None)
            return cell
        finally:
            with self._guard:
                if address not in self._cells:
                    self._fetching.pop(address, None)
            fetching.release()

    def _size(self) -> int:
        return sum(cell.size for cell in self._cells.values())


def _kept(error: Exception) -> Exception:
    """Return an error as an answer may have it, which is kept until it was fetched."""
    # They have what the cell has written.
    traceback.clear_frames(error.__traceback__)
    # Dask pickles what one of these was made of, and loses what it says.
    return ValueError(str(error)) if isinstance(error, UnicodeError) else error


def _fetch(address: str, run: _Run) -> Cell:
    """Return a cell from the worker's own store, or else from its sources."""
    from runner.content.resolver import parse_path, resolve_file
    from runner.content.sources import open_content

    options = FetchOptions()
    number = os.memfd_create("cell", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(number, "wb", buffering=0) as memory:
        with open_content(os.environ, options, address=address, quiet=True) as blocks:
            blocks.pulse = run.check
            blocks.prepare(parse_path(address))
            resolve_file(blocks, address, max_size=options.max_size).copy_to(number)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        return Cell.load(number, address)


@contextmanager
def _memory(content: object) -> Iterator[FileIO]:
    """A memory file that a cell may write to, and what is in it before.

    As an object it is closed once. A number that somebody else has closed is another thread's.
    """
    with open(os.memfd_create("grant", os.MFD_CLOEXEC), "w+b", buffering=0) as memory:
        view = memoryview(content)  # type: ignore[arg-type]
        while view:
            view = view[memory.write(view) :]
        memory.seek(0)
        yield memory


def _check_size(job: Job, result: Result, files: Iterable[FileIO]) -> None:
    """Bound what travels back, before any of the files is read.

    All of it is no longer than what was in the files before and all that the cell may write, unless
    the cell makes it longer without writing: one byte far out costs it one byte, and us the hole in
    front of it.

    Args:
        job: What was run.
        result: How it ended, with what is read already. The sandbox bounds each stream by itself.
        files: Those that the cell could write to.

    Raises:
        ClusterError: It is longer than anything that was written: the cell has only said so.
    """
    brought = sum(len(cast("bytes", o.source)) for o in job.grants if o.mode in _WRITABLE)
    output = job.options.get("limits", Limits()).output
    most = brought + (MAX_BYTES if output is None else output)
    size = len(result.stdout) + len(result.stderr)
    size += sum(os.fstat(file.fileno()).st_size for file in files)
    if size > most:
        raise ClusterError(
            job.address,
            f"the cell has made its outputs {size} bytes long together, and {most} may travel back",
            hint="raise limits.output, or have it leave no holes in them",
        )


def _content(memory: FileIO) -> bytes:
    """Return what is in a memory file."""
    memory.seek(0)
    return memory.readall()
