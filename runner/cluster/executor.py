"""The submitter's side: jobs to the scheduler, answers back."""

import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, InvalidStateError, wait
from contextlib import suppress
from time import monotonic
from typing import Any, Unpack, cast

import distributed
from distributed import Client, KilledWorker
from distributed.client import FutureCancelledError
from distributed.comm import addressing, registry
from distributed.scheduler import NoValidWorkerError, NoWorkerError
from distributed.security import Security

from runner.cluster.job import MAX_BYTES, Answer, ClusterError, ClusterResult, Job
from runner.cluster.job import Options as Travelling
from runner.cluster.worker import run_job
from runner.errors import EXIT_USAGE, WwError
from sandbox import (
    Cell,
    GrantError,
    Offer,
    Options,
    check_offers,
    check_options,
    granting,
    make_requests,
)

CellAddress = Cell | bytes | str | os.PathLike[str] | int
"""``/ipfs/CID[/PATH]``; all else is a local cell, which has to be imported first."""

_LOST = {
    "scheduler-connection-lost": "the connection to the scheduler was lost",
    "scheduler-restart": "the scheduler was restarted",
}
_AGAIN = "the cell may have run, but its outputs are lost, so it may be submitted again"


def _check_scheduler(address: str) -> None:
    """Hold that an address can be one, before Dask tries to reach it, and cleans up for a minute.

    Raises:
        ClusterError: If not; or if it takes TLS, and Dask's configuration has none.
    """
    hint = "write it like tls://HOST:8786"
    try:
        scheme, place = addressing.parse_address(address, strict=True)
        registry.get_backend(scheme)
        if scheme in ("tcp", "tls"):
            addressing.parse_host_port(place)
        if scheme == "tls" and not Security().get_connection_args("client")["ssl_context"]:
            hint = "set distributed.comm.tls in a file that DASK_CONFIG names"
            raise ValueError("it takes TLS, and there are no certificate and key for it")
    except (ValueError, TypeError, OSError) as error:
        raise ClusterError(f"scheduler {address}", str(error), hint=hint) from error


class ClusterFuture(Future[ClusterResult]):
    """A cell that waits or runs somewhere in the cluster.

    Attributes:
        name: What the cell is called, for errors: its address.
    """

    def __init__(self, name: str) -> None:
        """Begin as one that waits; made by :meth:`ClusterExecutor.submit` only."""
        super().__init__()
        self.name = name
        self._stop: Callable[[], object] = lambda: None
        self._once = threading.Lock()

    def cancel(self) -> bool:
        """Take it from the queue, or kill it; :meth:`result` raises CancelledError from now on.

        Which of the two it was is not known here. The worker hears of it a moment later.

        Returns:
            False if it is over already.
        """
        if not super().cancel():
            return False
        if self._once.acquire(blocking=False):  # and never released: once is enough
            self.set_running_or_notify_cancel()  # wakes those in wait() and as_completed()
            self._stop()
        return True

    def kill(self) -> bool:
        """The same as :meth:`cancel`."""
        return self.cancel()

    def running(self) -> bool:
        """Tell nothing: whether it has begun is known to the scheduler only."""
        return False


class ClusterExecutor(Executor):
    """Runs cells on the workers of a Dask cluster. Close it after use, or use it in a ``with``.

    Its methods are those of :class:`sandbox.CellExecutor`: what is submitted are cells and not
    functions, and the end of the ``with`` block waits for all of them. For any number of threads.
    """

    def __init__(
        self,
        cluster: Client | str,
        *,
        import_cells: bool = False,
        environ: Mapping[str, str] = os.environ,
        workers: Sequence[str] | None = None,
        resources: Mapping[str, float] | None = None,
        priority: int = 0,
    ) -> None:
        """Connect to a cluster.

        Args:
            cluster: A client, which stays the caller's, and open. Or the address of a scheduler,
                like ``tls://HOST:8786``; keys and certificates are those of Dask's configuration.
            import_cells: Whether a local cell is put into this machine's store, and pinned there,
                to have an address. The workers must be able to fetch it from somewhere.
            environ: Says where that store is.
            workers: Addresses or host names of the only workers to run cells on.
            resources: What a cell takes of the resources of its worker, as Dask counts them.
            priority: Among what waits in the cluster; higher comes first.

        Raises:
            ClusterError: The scheduler cannot be reached, or its address cannot be one.
            ValueError: The client is an asynchronous one.
        """
        self._import_cells = import_cells
        self._environ = environ
        self._how: dict[str, Any] = {
            "workers": None if workers is None else list(workers),
            "resources": None if resources is None else dict(resources),
            "priority": priority,
        }
        self._owned = isinstance(cluster, str)
        if isinstance(cluster, str):
            _check_scheduler(cluster)
            try:
                cluster = Client(cluster, set_as_default=False)
            except (OSError, TimeoutError) as error:
                raise ClusterError(
                    f"scheduler {cluster}",
                    f"it cannot be reached: {error}",
                    hint="see that it runs, and that its certificate is of the same authority",
                ) from error
        if cluster.asynchronous or cluster.loop is None:
            raise ValueError("the client has to be a synchronous one, and connected")
        self._client: Client = cluster
        self._loop = cluster.loop
        # One group of tasks: of the many in it, the scheduler hands out as many as are run, and
        # those that wait are not lost together with a worker that has not begun them.
        self._group = f"ww-{os.urandom(8).hex()}"
        self._numbers = itertools.count()
        self._guard = threading.Lock()
        self._open: set[ClusterFuture] = set()
        self._closed = False
        self._imported: dict[str, str] = {}  # digest of a cell -> its address

    @property
    def client(self) -> Client:
        """The client: for what Dask tells of its workers and of what waits."""
        return self._client

    def submit(  # type: ignore[override]  # cells are submitted here, and no functions
        self,
        cell: CellAddress,
        args: Iterable[str] = (),
        grants: Iterable[Offer] = (),
        **options: Unpack[Options],
    ) -> ClusterFuture:
        """Have a cell run by one of the workers.

        Args:
            cell: Its address. A local cell only with ``import_cells``.
            args: Its arguments, after its name.
            grants: What it is granted. The source of each is bytes, or a file to read here and now.
                What is granted with the mode ``w`` or ``rw`` must be bytes; what the cell has made
                of them is in :attr:`ClusterResult.files`. ``move`` does nothing: no descriptor of
                this machine is granted, so there is none to give away.
            **options: As of :class:`sandbox.Options`. ``stdin`` is bytes or a file, likewise.

        Returns:
            What will have the result, or the error that ``ww run`` would end with.

        Raises:
            WwError: The cell has no address, or a malformed one (code EXIT_USAGE).
            GrantError: A grant cannot travel, or it does not keep the rules of grants.
            TypeError: Something is not of its type, or there is no such option.
            ValueError: There are more bytes than :data:`runner.cluster.job.MAX_BYTES`; or an
                argument or an option cannot be.
            OSError: A file cannot be read.
            RuntimeError: The executor is closed.
            ClusterError: The client is closed.
        """
        texts, offers = check_options(args, options), check_offers(grants)
        # How many numbers there are is for the worker's machine to say.
        make_requests(offers, [None] * len(offers), granting.MAX_TARGETS)
        address = self._address(cell)
        job = Job(address, texts, tuple(map(_travelling, offers)), _packed(options))
        _check_size(job)
        future = ClusterFuture(address)
        with self._guard:
            if self._closed:
                raise RuntimeError("cannot submit a cell to an executor that is closed")
            number = next(self._numbers)
            self._open.add(future)
        # Nobody but this thread knows it yet, and an interrupt may come: nothing would ever end it.
        try:
            future.add_done_callback(self._forget)
            handle = self._client.submit(
                run_job, job, key=(self._group, number), pure=False, retries=0, **self._how
            )
            future._stop = lambda: self._loop.add_callback(self._cancel, handle)
            self._loop.add_callback(self._follow, handle, future, address)
        except BaseException as error:
            future.cancel()
            if isinstance(error, Exception):
                raise ClusterError(address, f"it cannot be submitted: {error}") from error
            raise
        if future.cancelled():  # by a shutdown, before it could be told of the job
            future._stop()
        return future

    def map(  # type: ignore[override]  # as of submit
        self,
        cell: CellAddress,
        args: Iterable[Iterable[str]] | None = None,
        grants: Iterable[Iterable[Offer]] | None = None,
        *,
        stdins: Iterable[Any] | None = None,
        timeout: float | None = None,
        chunksize: int = 1,
        **options: Unpack[Options],
    ) -> Iterator[ClusterResult]:
        """Have a cell run for each of several inputs, at once; the results come in their order.

        Args:
            cell: As for :meth:`submit`.
            args: The arguments of each run.
            grants: The grants of each run.
            stdins: The standard input of each run. Those of the three that are given are zipped;
                one at least must be.
            timeout: Seconds from now after which no result is waited for any more.
            chunksize: Is not used; every cell is a job of its own.
            **options: As for :meth:`submit`, for all runs.

        Yields:
            The results. What is not done when the iterator is closed, or an error ends it, is
            cancelled.

        Raises:
            TypeError: None of the three is given: nobody could tell how many runs there are.
            TimeoutError: It takes longer than the timeout.
        """
        given = {"args": args, "grants": grants, "stdin": stdins}
        columns = {name: values for name, values in given.items() if values is not None}
        if not columns:
            raise TypeError("map needs args, grants or stdins: one of each for each run")
        end = None if timeout is None else monotonic() + timeout
        futures: list[ClusterFuture] = []
        try:
            for row in zip(*columns.values(), strict=False):
                one = cast("dict[str, Any]", {**options, **dict(zip(columns, row, strict=True))})
                futures.append(self.submit(cell, **one))
        except BaseException:
            _cancel_all(futures)
            raise
        return _results(futures, end)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, kill: bool = False
    ) -> None:
        """Take no more cells, and wait for those that were taken.

        Args:
            wait: Whether to wait for them. If not, they come to their end if the client stays open.
            cancel_futures: Whether to cancel what is not done, whether it runs or not.
            kill: The same.
        """
        with self._guard:
            self._closed = True
            left = set(self._open)
        if cancel_futures or kill:
            _cancel_all(left)
        if wait:
            _wait(left)
        if self._owned:
            if wait:
                self._client.close()
            else:
                threading.Thread(target=self._close_later, args=(left,), daemon=True).start()

    # --- what is submitted ---

    def _address(self, cell: CellAddress) -> str:
        if isinstance(cell, str) and cell.startswith("/ipfs/"):
            from runner.content.resolver import parse_path

            parse_path(cell)
            return cell
        if isinstance(cell, str) and cell.startswith("/ipns/"):
            raise WwError(
                cell,
                "a name may lead each worker to another cell",
                hint="submit the address that 'ww resolve' prints",
                code=EXIT_USAGE,
            )
        if not self._import_cells:
            raise WwError(
                cell.name if isinstance(cell, Cell) else _shown(cell),
                "it has no address by which a worker could fetch it",
                hint="submit what 'ww export' prints, or ask for import_cells",
                code=EXIT_USAGE,
            )
        if isinstance(cell, Cell):
            return self._imported_address(cell)
        with Cell.load(cell) as loaded:
            return self._imported_address(loaded)

    def _imported_address(self, cell: Cell) -> str:
        """Put a cell into the store, unless that was done, and return its address."""
        from runner.content import pins
        from runner.content.blockstore import Blockstore, store_home
        from runner.content.importer import UNIXFS_V0_2015, import_stream

        with self._guard:
            known = self._imported.get(cell.digest)
        if known is not None:
            return known
        file = cell.open()
        try:
            with Blockstore(store_home(self._environ)) as store:
                cid = import_stream(store, file, cell.name, UNIXFS_V0_2015)
                pins.add(store.home, cid, os.path.basename(cell.name))
        finally:
            os.close(file)
        with self._guard:
            return self._imported.setdefault(cell.digest, f"/ipfs/{cid}")

    # --- what comes back; in the client's event loop ---

    async def _follow(
        self, handle: "distributed.Future[Answer]", future: ClusterFuture, address: str
    ) -> None:
        """Wait for the answer to a job, and hand it on."""
        said: ClusterResult | BaseException
        try:
            answer: Answer = await self._client.gather(handle, asynchronous=True)
            said = answer.said
            if isinstance(said, Exception):
                said.add_note(f"on the worker {answer.worker}")
        except BaseException as error:
            said = _as_cluster_error(address, error)
        # Which it is not any more if it was cancelled in the meantime.
        with suppress(InvalidStateError):
            if isinstance(said, BaseException):
                future.set_exception(said)
            else:
                future.set_result(said)
        handle.release()

    async def _cancel(self, handle: "distributed.Future[Answer]") -> None:
        with suppress(Exception):  # the connection is lost, and the job with it
            await self._client.cancel([handle], asynchronous=True)

    def _forget(self, future: Future[ClusterResult]) -> None:
        with self._guard:
            self._open.discard(cast("ClusterFuture", future))

    def _close_later(self, left: Iterable[ClusterFuture]) -> None:
        _wait(left)
        self._client.close()


def _results(futures: list[ClusterFuture], end: float | None) -> Iterator[ClusterResult]:
    try:
        futures.reverse()
        while futures:
            # Not kept here: the caller may be the only one to hold a result.
            yield _result(futures.pop(), end)
    finally:
        _cancel_all(futures)


def _result(future: ClusterFuture, end: float | None) -> ClusterResult:
    """Return a result that nobody else waits for: the cell is cancelled if it does not come."""
    try:
        return future.result(None if end is None else end - monotonic())
    finally:
        future.cancel()


def _cancel_all(futures: Iterable[ClusterFuture]) -> None:
    for future in futures:
        future.cancel()


def _wait(futures: Iterable[ClusterFuture]) -> None:
    wait(futures)


def _shown(cell: bytes | str | os.PathLike[str] | int) -> str:
    """Return what a cell without an address is called in an error."""
    if isinstance(cell, bytes):
        return f"a cell of {len(cell)} bytes"
    return f"descriptor {cell}" if isinstance(cell, int) else os.fspath(cell)


def _travelling(offer: Offer) -> Offer:
    """Return a grant whose source is bytes.

    Raises:
        GrantError: It cannot travel.
        OSError: The file cannot be read.
    """
    where = f"grant {offer.name}"
    if offer.guest is not None:
        raise GrantError(where, "a directory cannot be granted on another machine")
    if offer.mode in ("w", "rw") and not isinstance(offer.source, bytes):
        raise GrantError(
            where,
            "what a cell writes on another machine comes back as bytes",
            hint="grant bytes, b'' for an empty file; the result's files have what became of them",
        )
    return offer._replace(source=_content(offer.source, where))


def _content(source: object, where: str) -> bytes:
    """Return the bytes that a source stands for.

    Raises:
        GrantError: It is a descriptor, or the path of something else than a file.
        OSError: The file cannot be read.
        TypeError: It is no source at all.
    """
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str | os.PathLike):
        number = isinstance(source, int) and not isinstance(source, bool)
        if not number and not hasattr(source, "fileno"):
            kind = type(source).__name__
            raise TypeError(f"{where} has to be bytes or a path, and not of type {kind}")
        raise GrantError(
            where,
            "a descriptor means nothing on another machine",
            hint="grant bytes, or the path of a file",
        )
    # Not blocking: a FIFO in the file's place must not make the submitter wait for a writer.
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise GrantError(where, f"{os.fspath(source)} is not a regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)  # one byte too many is refused, like any number of them
    finally:
        os.close(fd)


def _packed(options: Options) -> Travelling:
    packed = cast("Travelling", dict(options))
    if "stdin" in options:
        packed["stdin"] = _content(options["stdin"], "stdin")
    packed["env"] = dict(options.get("env") or {})
    return packed


def _check_size(job: Job) -> None:
    """Bound what a job brings along.

    Raises:
        ValueError: It is too much.
    """
    total = len(job.options.get("stdin", b""))
    total += sum(len(cast("bytes", offer.source)) for offer in job.grants)
    if total > MAX_BYTES:
        raise ValueError(
            f"stdin and grants have {total} bytes together, and {MAX_BYTES} may travel"
        )


def _as_cluster_error(address: str, error: BaseException) -> ClusterError:
    """Say what has become of a job that no worker has answered."""
    match error:
        case FutureCancelledError():
            reason = str(error.reason)
            what = _LOST.get(reason, "it was cancelled by others, or the client was closed")
            found = ClusterError(address, what, hint=_AGAIN)
        case KilledWorker():
            tries, last = error.allowed_failures + 1, error.last_worker.address
            many = "1 worker was" if tries == 1 else f"{tries} workers were"
            what = f"{many} lost with it, at last {last}"
            hint = "see the logs of that worker; allowed-failures of the scheduler is the bound"
            found = ClusterError(address, what, hint=hint)
        case NoWorkerError() | NoValidWorkerError():
            what = "no worker came that could have run it, for as long as the scheduler waits"
            hint = "start one, or see its no-workers-timeout"
            found = ClusterError(address, what, hint=hint)
        case OSError():
            what = f"its result could not be fetched: {error}"
            found = ClusterError(address, what, hint=_AGAIN)
        case _:
            # Nothing that a cell or a grant can cause: another version of ww there, say.
            text = " ".join(str(error).split())
            what = f"no worker could run it: {type(error).__name__}: {text}"
            hint = "have the same release of wetware and dask on all machines"
            found = ClusterError(address, what, hint=hint)
    found.__cause__ = error
    return found
