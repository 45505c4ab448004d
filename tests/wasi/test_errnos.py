"""What the kernel says is told to the cell in the numbers of WASI."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import wasmtime

from sandbox.wasi import abi
from sandbox.wasi.files import File
from tests.wasi.host_here import Host
from tests.wasi.remote_cell import Errno
from tests.wasi.test_transitions import AT, VECTOR, every_function, linked


def test_every_errno_of_wasi_that_this_machine_has_is_told_by_its_name() -> None:
    # A name in Python cannot begin with a digit, so that one keeps its E.
    names = {item: f"E{item.name}" for item in Errno} | {Errno.E2BIG: "E2BIG"}
    # No error, and one that only WASI has.
    del names[Errno.SUCCESS], names[Errno.NOTCAPABLE]
    assert {getattr(errno, name): int(item) for item, name in names.items()} == abi.ERRNO


class Failing(File):
    """A file whose reading fails as it is told to."""

    error = 0

    def read(self, buffers: Sequence[memoryview]) -> int:
        raise OSError(self.error, os.strerror(self.error))


def test_whatever_the_kernel_says_becomes_an_errno_of_wasi() -> None:
    host = Host()
    module = wasmtime.Module(host.engine, every_function())
    file = Failing(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), "rw")
    with linked(host, module, {10: file}) as cell:
        for number in errno.errorcode:
            file.error = number
            # What WASI has no name for is an error of input and output.
            expected = abi.ERRNO.get(number, Errno.IO)
            assert cell.call("fd_read", 10, VECTOR, 1, AT) == expected
