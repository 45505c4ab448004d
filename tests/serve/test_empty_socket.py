"""An empty path for the socket is a mistake, and not the place where every `ww run` looks."""

import pytest

from tests.conftest import Ww


@pytest.mark.parametrize("flags", [("--socket", ""), ("--socket=",)], ids=" ".join)
def test_an_empty_path_for_the_socket_is_refused(ww: Ww, flags: tuple[str, ...]) -> None:
    runtime = ww.tmp / "runtime"
    runtime.mkdir(mode=0o700)
    done = ww.run("serve", *flags, env={"WW_SOCKET": "", "XDG_RUNTIME_DIR": str(runtime)})
    assert (done.returncode, done.stderr) == (2, b"ww: error: --socket: it is empty\n")
    assert list(runtime.iterdir()) == []
