"""Jails that were made before anybody asked for them, so that a cell need not wait for its own.

They are of one kind, which serves most cells. A jail serves one cell and ends with it; another is
made in its place while there is nothing better to do.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from sandbox.order import ORDINARY, Order
from sandbox.waiting import Ids, Waiting

# Seconds after a failure until the next attempt: a machine that refuses one now may do so always,
# and a cell that finds none has one made, and hears why that fails.
_PAUSE = 5.0
# And until a jail with a proc is tried again after one failed, which may have had another cause.
_WITHOUT_PROC = 60.0
# Seconds for which nothing has begun or ended before another is made: what is made meanwhile takes
# processors from cells, and from who waits for them.
_QUIET = 0.005


class ReadyJails:
    """A stock of jails, and the thread that fills it up."""

    def __init__(self, most: int, make: Callable[[Order, Ids], Waiting]) -> None:
        """Begin to fill it.

        Args:
            most: How many are kept ready; 0 for none, and no thread.
            make: Makes a jail.
        """
        self._most = most
        self._make = make
        # As whom most cells run: as nobody where root runs them, else as their owner.
        own = Ids(os.geteuid(), os.getegid())
        self._ids = own if own.uid else Ids(_NOBODY, _NOBODY)
        self._jails: list[Waiting] = []
        self._starting = 0
        self._last = 0.0
        self._over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._fill, daemon=True)
        if most:
            self._thread.start()

    def take(self, kind: Order, ids: Ids) -> Waiting | None:
        """Return a jail that is ready, if there is one for this kind of cell.

        Args:
            kind: What the cell takes.
            ids: Who it is to be on the host.
        """
        while ids == self._ids:
            with self._changed:
                if self._over or not self._jails or not self._jails[0].kind.serves(kind):
                    return None
                jail = self._jails.pop(0)
            if jail.is_alive():
                return jail
            jail.give_up()
        return None

    def begin(self) -> None:
        """Note that a cell is about to start."""
        with self._changed:
            self._starting += 1
            self._last = time.monotonic()

    def end(self) -> None:
        """Note that a cell has started, or come to its end before that."""
        with self._changed:
            self._starting -= 1
            self._last = time.monotonic()
            if len(self._jails) < self._most:
                self._changed.notify()

    def rest(self) -> None:
        """Note that a cell has ended, and that for a moment there may be nothing to do."""
        with self._changed:
            self._last = time.monotonic()
            if len(self._jails) < self._most:
                self._changed.notify()

    def close(self) -> None:
        """End all that wait, and make no more."""
        with self._changed:
            self._over = True
            self._changed.notify()
        if self._most:
            self._thread.join(_PAUSE)
        with self._changed:
            left, self._jails = self._jails, []
        for jail in left:
            jail.give_up()

    def _fill(self) -> None:
        """Be the thread."""
        without_proc_until = 0.0
        while self._wait_for_room():
            kind = ORDINARY._replace(proc=time.monotonic() >= without_proc_until)
            # A defect must not be the end of all of them; a cell that meets it says what it is.
            with suppress(Exception):
                jail = self._make(kind, self._ids)
                try:
                    ready = jail.get_ready()
                except BaseException:
                    jail.give_up()
                    raise
                if ready:
                    with self._changed:
                        self._jails.append(jail)
                    continue
                jail.give_up()
            # Where no proc may be mounted, cells without pathlinks run all the same.
            without_proc_until = time.monotonic() + _WITHOUT_PROC if kind.proc else 0.0
            with self._changed:
                self._changed.wait_for(lambda: self._over, _PAUSE)

    def _wait_for_room(self) -> bool:
        """Wait until another jail is wanted and there is time for it; false if it is all over."""
        processors = os.cpu_count() or 1
        with self._changed:
            while not self._over:
                quiet = time.monotonic() - self._last
                if len(self._jails) >= self._most:
                    self._changed.wait()
                elif not self._jails and self._starting < processors:
                    return True  # nobody can be served any more, so it is not too soon
                elif self._starting:
                    self._changed.wait()
                elif quiet < _QUIET:
                    self._changed.wait(_QUIET - quiet)
                else:
                    return True
        return False


# As :data:`runner.commands.run` has it: the kernel's overflow id.
_NOBODY = 65534
