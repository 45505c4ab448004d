"""What ww writes arrives whole, whatever others have made of its stdout."""

from __future__ import annotations

import os
import threading
import time

from runner.output import write_lines


def test_a_pipe_that_is_non_blocking_and_full_is_waited_for() -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    got = bytearray()

    def take() -> None:
        time.sleep(0.1)
        os.set_blocking(reading, True)
        while data := os.read(reading, 1 << 16):
            got.extend(data)

    reader = threading.Thread(target=take)
    reader.start()
    lines = [str(number) for number in range(50_000)]  # more than a pipe holds
    write_lines(writing, lines)
    os.close(writing)
    reader.join()
    os.close(reading)
    assert got.decode().splitlines() == lines
