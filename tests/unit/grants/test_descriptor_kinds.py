"""What the kernel says about descriptors of every kind, asked of the real kernel."""

import contextlib
import ctypes
import fcntl
import os
import pty
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.granting import kernel
from sandbox.granting.kernel import Descriptor, describe
from sandbox.wasi import abi
from sandbox.wasi.files import open_grant
from tests.features import lacks

ROOT = Path(__file__).parents[3]
LIBC = ctypes.CDLL(None, use_errno=True)
IO_URING_SETUP = 425  # the same on every architecture: asm-generic/unistd.h


@pytest.fixture
def keep() -> Iterator[Callable[[int], int]]:
    """Closes what a test opens."""
    with contextlib.ExitStack() as stack:

        def register(fd: int) -> int:
            if fd < 0:
                pytest.skip(f"this kernel does not make one: {os.strerror(ctypes.get_errno())}")
            stack.callback(os.close, fd)
            return fd

        yield register


Keep = Callable[[int], int]


@pytest.mark.parametrize(
    ("flags", "mode"), [(os.O_RDONLY, "r"), (os.O_WRONLY, "w"), (os.O_RDWR, "rw")]
)
def test_a_regular_file_is_a_file_with_its_access_mode(
    tmp_path: Path, keep: Keep, flags: int, mode: str
) -> None:
    fd = keep(os.open(tmp_path / "f", flags | os.O_CREAT))
    assert describe(fd) == Descriptor("regular file", mode, ("file",))  # type: ignore[arg-type]


def test_append_and_other_flags_do_not_change_the_mode(tmp_path: Path, keep: Keep) -> None:
    fd = keep(os.open(tmp_path / "f", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK))
    assert describe(fd).mode == "w"


def test_an_unlinked_file_is_a_regular_file(tmp_path: Path, keep: Keep) -> None:
    fd = keep(os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT))
    (tmp_path / "f").unlink()
    assert describe(fd) == Descriptor("regular file", "rw", ("file",))


def test_a_file_of_proc_is_a_file_because_the_caller_opened_it(keep: Keep) -> None:
    fd = keep(os.open("/proc/self/mem", os.O_RDWR))
    assert describe(fd) == Descriptor("regular file", "rw", ("file",))


def test_a_memfd_is_a_file(keep: Keep) -> None:
    assert describe(keep(os.memfd_create("x"))) == Descriptor("memfd", "rw", ("file",))


def test_the_ends_of_a_pipe_are_streams(keep: Keep) -> None:
    reader, writer = os.pipe()
    assert describe(keep(reader)) == Descriptor("pipe (read end)", "r", ("stream",))
    assert describe(keep(writer)) == Descriptor("pipe (write end)", "w", ("stream",))


def test_a_fifo_open_for_both_is_a_stream_of_both(tmp_path: Path, keep: Keep) -> None:
    os.mkfifo(tmp_path / "p")
    fd = keep(os.open(tmp_path / "p", os.O_RDWR))
    assert describe(fd) == Descriptor("pipe (both ends)", "rw", ("stream",))


def test_a_terminal_is_a_stream(keep: Keep) -> None:
    leader, follower = pty.openpty()
    keep(leader)
    assert describe(keep(follower)) == Descriptor("terminal", "rw", ("stream",))


def test_a_character_device_is_a_stream(keep: Keep) -> None:
    fd = keep(os.open("/dev/null", os.O_WRONLY))
    assert describe(fd) == Descriptor("character device", "w", ("stream",))


def test_a_block_device_is_a_file(keep: Keep) -> None:
    for entry in Path("/dev").iterdir():
        if entry.is_block_device():
            with contextlib.suppress(OSError):
                fd = keep(os.open(entry, os.O_RDONLY))
                assert describe(fd) == Descriptor("block device", "r", ("file",))
                return
    pytest.skip("no block device can be opened here")


def test_a_descriptor_for_ioctl_only_is_refused(keep: Keep) -> None:
    found = describe(keep(os.open("/dev/null", 3)))
    assert found.mode is None
    assert found.types == ()
    assert found.refusal == "it is open for neither reading nor writing"


def test_a_path_descriptor_is_refused(tmp_path: Path, keep: Keep) -> None:
    (tmp_path / "f").touch()
    found = describe(keep(os.open(tmp_path / "f", os.O_PATH)))
    assert (found.mode, found.types) == (None, ())
    assert "O_PATH" in found.what
    assert found.refusal == "it is open for neither reading nor writing"


def test_a_path_descriptor_of_a_symbolic_link_is_refused(tmp_path: Path, keep: Keep) -> None:
    (tmp_path / "l").symlink_to("/")
    assert describe(keep(os.open(tmp_path / "l", os.O_PATH | os.O_NOFOLLOW))).refusal


@pytest.mark.parametrize("flags", [0, os.O_DIRECTORY])
def test_a_directory_is_a_file_with_the_mode_of_its_mount(
    tmp_path: Path, keep: Keep, flags: int
) -> None:
    fd = keep(os.open(tmp_path, os.O_RDONLY | flags))
    assert describe(fd) == Descriptor("directory", "rw", ("file",), directory=True)


def test_a_directory_opened_as_a_path_is_refused(tmp_path: Path, keep: Keep) -> None:
    found = describe(keep(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)))
    assert (found.mode, found.types, found.directory) == (None, (), False)
    assert found.refusal == "it is open for neither reading nor writing"


def epoll() -> int:
    with select.epoll() as made:
        return os.dup(made.fileno())


def signalfd() -> int:
    mask = (ctypes.c_ulong * 16)()
    return int(LIBC.signalfd(-1, mask, 0))


def io_uring() -> int:
    return int(LIBC.syscall(IO_URING_SETUP, 4, ctypes.create_string_buffer(120)))


def bpf_map() -> int:
    # union bpf_attr of include/uapi/linux/bpf.h: BPF_MAP_TYPE_HASH, key, value, entries.
    number = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine)
    if number is None:
        pytest.skip("no number of bpf(2) for this machine")
    attribute = (ctypes.c_uint * 32)(1, 4, 4, 1)
    return int(LIBC.syscall(number, 0, attribute, ctypes.sizeof(attribute)))


def userfaultfd() -> int:
    number = {"x86_64": 323, "aarch64": 282}.get(os.uname().machine)
    if number is None:
        pytest.skip("no number of userfaultfd(2) for this machine")
    return int(LIBC.syscall(number, 1))  # UFFD_USER_MODE_ONLY


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (epoll, "eventpoll"),
        (lambda: os.pidfd_open(os.getpid()), "pidfd"),
        (lambda: os.eventfd(0), "eventfd"),
        (lambda: LIBC.timerfd_create(1, 0), "timerfd"),
        (signalfd, "signalfd"),
        (lambda: LIBC.inotify_init1(0), "inotify"),
        (io_uring, "io_uring"),
        (bpf_map, "bpf-map"),
        (userfaultfd, "userfaultfd"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_kernel_object_that_is_no_file_is_refused(
    keep: Keep, make: Callable[[], int], word: str
) -> None:
    found = describe(keep(make()))
    assert found.what == f"{word} descriptor"
    assert found.types == ()
    assert found.refusal == "it is no file, stream or socket"


@pytest.mark.parametrize("namespace", sorted(os.listdir("/proc/self/ns")))
def test_a_namespace_is_refused_although_it_looks_like_a_regular_file(
    keep: Keep, namespace: str
) -> None:
    found = describe(keep(os.open(f"/proc/self/ns/{namespace}", os.O_RDONLY)))
    assert found.what == "namespace"
    assert found.types == ()
    assert "setns()" in found.refusal


def test_an_object_that_no_path_leads_to_is_refused_although_it_looks_like_a_regular_file(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A namespace again, as no other such object is known: its file system is made unknown here.
    monkeypatch.setattr(kernel, "_namespace_device", lambda: -1)
    found = describe(keep(os.open("/proc/self/ns/net", os.O_RDONLY)))
    assert found.types == ()
    assert found.refusal == "it is no file, stream or socket"


def in_mount_namespace(script: str, *arguments: str) -> str:
    """Runs a shell script where it may mount; skips where nobody may."""
    unshare = ["unshare", "--mount", "--map-root-user"]
    if os.geteuid() == 0:
        unshare.pop()
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        lacks("userns", "no mount namespace can be made here")
    command = [*unshare, "sh", "-euc", script, "sh", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_a_bind_mounted_namespace_is_refused_although_its_link_is_a_path(tmp_path: Path) -> None:
    mounted = tmp_path / "net"
    mounted.touch()
    program = "import sandbox.granting.kernel as k, os; print(os.readlink('/proc/self/fd/5'));"
    program += "print(k.describe(5).what)"
    # `ip netns add` makes files like this one.
    script = 'mount --bind /proc/self/ns/net "$1"; exec "$2" -c "$3" 5<"$1"'
    link, what = in_mount_namespace(script, str(mounted), sys.executable, program).splitlines()
    assert link == str(mounted)
    assert what == "namespace"


def test_a_directory_on_a_read_only_mount_is_one_for_reading(tmp_path: Path) -> None:
    program = "import sandbox.granting.kernel as k; print(k.describe(5).mode, k.describe(6).mode)"
    # The file system stays writable: one of its mounts is not.
    script = (
        'mkdir "$1/a" "$1/b"; mount -t tmpfs none "$1/a"; mount --bind "$1/a" "$1/b"; '
        'mount -o remount,bind,ro "$1/b"; exec "$2" -c "$3" 5<"$1/a" 6<"$1/b"'
    )
    assert in_mount_namespace(script, str(tmp_path), sys.executable, program).split() == ["rw", "r"]


def test_a_connected_stream_socket_may_be_a_stream(keep: Keep) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, other:
        expected = Descriptor("unix stream socket", "rw", ("socket", "stream"))
        assert describe(one.fileno()) == expected


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_connected_socket_with_messages_is_a_socket_only(kind: int) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        assert describe(one.fileno()).types == ("socket",)


def test_tcp_sockets_are_told_apart() -> None:
    with socket.socket() as fresh, socket.socket() as listener, socket.socket() as client:
        assert describe(fresh.fileno()) == Descriptor("tcp socket", "rw", ("socket",))
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert describe(listener.fileno()) == Descriptor("listening tcp socket", "rw", ("socket",))
        client.connect(listener.getsockname())
        assert describe(client.fileno()) == Descriptor("tcp socket", "rw", ("socket", "stream"))


def test_a_udp_socket_is_a_socket() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.connect(("127.0.0.1", 9))
        assert describe(udp.fileno()) == Descriptor("udp socket", "rw", ("socket",))


def test_a_socket_of_another_family_is_named_by_it() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink:
        assert describe(netlink.fileno()) == Descriptor("netlink raw socket", "rw", ("socket",))


@pytest.mark.parametrize(("family", "kind"), [(38, socket.SOCK_SEQPACKET), (44, socket.SOCK_RAW)])
def test_a_socket_that_has_no_addresses_is_a_socket(family: int, kind: int) -> None:
    # AF_ALG and AF_XDP: getsockname(2) fails on them.
    try:
        made = socket.socket(family, kind)
    except OSError as error:
        pytest.skip(str(error))
    with made:
        found = describe(made.fileno())
        assert found == Descriptor("socket of a family without addresses", "rw", ("socket",))
        os.fstat(made.fileno())
        # And the host can serve it.
        served = open_grant(os.dup(made.fileno()), "rw")
        assert served.filetype == abi.SOCKET_DGRAM
        served.close()


def test_describing_changes_and_closes_nothing(keep: Keep) -> None:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        before = fcntl.fcntl(one, fcntl.F_GETFL), fcntl.fcntl(one, fcntl.F_GETFD)
        opened = os.listdir("/proc/self/fd")
        other.send(b"x")
        describe(one.fileno())
        assert (fcntl.fcntl(one, fcntl.F_GETFL), fcntl.fcntl(one, fcntl.F_GETFD)) == before
        assert os.listdir("/proc/self/fd") == opened
        assert one.recv(2) == b"x"


def test_a_closed_descriptor_is_an_os_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        describe(reader)
