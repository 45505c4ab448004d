"""Step 6: a network that holds nothing but a ``lo`` that is down, or up where it was asked for."""

import errno
import os

# include/uapi/linux/if.h
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
# LOOPBACK_IFINDEX of include/linux/net_namespace.h: what every network namespace begins with.
_LO = 1


def prepare() -> None:
    """Load what :func:`raise_loopback` needs, where there still are files to load it from.

    Done by the spawner. It starts no thread, and nor does the use of what is loaded.

    Raises:
        ImportError: If pyroute2 is not there.
    """
    import pyroute2  # noqa: F401


def raise_loopback() -> None:
    """Bring up ``lo`` in the calling process's network namespace; rtnetlink(7).

    The kernel gives it its addresses (127.0.0.1, ::1) as it comes up.

    Raises:
        OSError: EPERM without CAP_NET_ADMIN in the namespace; ENODEV if it did not come up.
    """
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as routes:
            routes.link("set", index=_LO, state="up")
            flags = routes.get_links(_LO)[0]["flags"]
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code), "lo") from error
    if flags & (_IFF_UP | _IFF_LOOPBACK) != _IFF_UP | _IFF_LOOPBACK:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), "lo")
