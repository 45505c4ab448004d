"""WASI preview 1 as a binary interface: functions, errnos, rights, layouts.

Source of all of it: the witx files of WASI snapshot preview 1
(WebAssembly/WASI, legacy/preview1/witx/{typenames,wasi_snapshot_preview1}.witx).
"""

import errno
import struct

MODULE = "wasi_snapshot_preview1"

# Parameters of every function: i for i32, I for i64. Each returns an i32 errno but proc_exit,
# which does not return.
FUNCTIONS = {
    "args_get": "ii",
    "args_sizes_get": "ii",
    "environ_get": "ii",
    "environ_sizes_get": "ii",
    "clock_res_get": "ii",
    "clock_time_get": "iIi",
    "fd_advise": "iIIi",
    "fd_allocate": "iII",
    "fd_close": "i",
    "fd_datasync": "i",
    "fd_fdstat_get": "ii",
    "fd_fdstat_set_flags": "ii",
    "fd_fdstat_set_rights": "iII",
    "fd_filestat_get": "ii",
    "fd_filestat_set_size": "iI",
    "fd_filestat_set_times": "iIIi",
    "fd_pread": "iiiIi",
    "fd_prestat_get": "ii",
    "fd_prestat_dir_name": "iii",
    "fd_pwrite": "iiiIi",
    "fd_read": "iiii",
    "fd_readdir": "iiiIi",
    "fd_renumber": "ii",
    "fd_seek": "iIii",
    "fd_sync": "i",
    "fd_tell": "ii",
    "fd_write": "iiii",
    "path_create_directory": "iii",
    "path_filestat_get": "iiiii",
    "path_filestat_set_times": "iiiiIIi",
    "path_link": "iiiiiii",
    "path_open": "iiiiiIIii",
    "path_readlink": "iiiiii",
    "path_remove_directory": "iii",
    "path_rename": "iiiiii",
    "path_symlink": "iiiii",
    "path_unlink_file": "iii",
    "poll_oneoff": "iiii",
    "proc_exit": "i",
    "proc_raise": "i",
    "sched_yield": "",
    "random_get": "ii",
    "sock_accept": "iii",
    "sock_recv": "iiiiii",
    "sock_send": "iiiii",
    "sock_shutdown": "ii",
}
# Functions on descriptors, with the positions of the parameters that are such. (fd_renumber is
# about numbers alone.)
DESCRIPTORS = {
    **{
        name: (0,)
        for name in FUNCTIONS
        if name.startswith(("fd_", "path_", "sock_")) and name != "fd_renumber"
    },
    "path_link": (0, 4),
    "path_rename": (0, 3),
    "path_symlink": (2,),
}
# Others that this host serves. proc_exit: wasmtime allows exit codes below 126 only. poll_oneoff:
# wasmtime's would start threads, and cannot mix our descriptors with clocks.
HOST = ("poll_oneoff", "proc_exit")

# errno.typenames.witx by the numbers of this host; what is not listed becomes EIO.
ERRNO = {
    errno.E2BIG: 1,
    errno.EACCES: 2,
    errno.EADDRINUSE: 3,
    errno.EADDRNOTAVAIL: 4,
    errno.EAFNOSUPPORT: 5,
    errno.EAGAIN: 6,
    errno.EALREADY: 7,
    errno.EBADF: 8,
    errno.EBADMSG: 9,
    errno.EBUSY: 10,
    errno.ECANCELED: 11,
    errno.ECHILD: 12,
    errno.ECONNABORTED: 13,
    errno.ECONNREFUSED: 14,
    errno.ECONNRESET: 15,
    errno.EDEADLK: 16,
    errno.EDESTADDRREQ: 17,
    errno.EDOM: 18,
    errno.EDQUOT: 19,
    errno.EEXIST: 20,
    errno.EFAULT: 21,
    errno.EFBIG: 22,
    errno.EHOSTUNREACH: 23,
    errno.EIDRM: 24,
    errno.EILSEQ: 25,
    errno.EINPROGRESS: 26,
    errno.EINTR: 27,
    errno.EINVAL: 28,
    errno.EIO: 29,
    errno.EISCONN: 30,
    errno.EISDIR: 31,
    errno.ELOOP: 32,
    errno.EMFILE: 33,
    errno.EMLINK: 34,
    errno.EMSGSIZE: 35,
    errno.EMULTIHOP: 36,
    errno.ENAMETOOLONG: 37,
    errno.ENETDOWN: 38,
    errno.ENETRESET: 39,
    errno.ENETUNREACH: 40,
    errno.ENFILE: 41,
    errno.ENOBUFS: 42,
    errno.ENODEV: 43,
    errno.ENOENT: 44,
    errno.ENOEXEC: 45,
    errno.ENOLCK: 46,
    errno.ENOLINK: 47,
    errno.ENOMEM: 48,
    errno.ENOMSG: 49,
    errno.ENOPROTOOPT: 50,
    errno.ENOSPC: 51,
    errno.ENOSYS: 52,
    errno.ENOTCONN: 53,
    errno.ENOTDIR: 54,
    errno.ENOTEMPTY: 55,
    errno.ENOTRECOVERABLE: 56,
    errno.ENOTSOCK: 57,
    errno.ENOTSUP: 58,
    errno.ENOTTY: 59,
    errno.ENXIO: 60,
    errno.EOVERFLOW: 61,
    errno.EOWNERDEAD: 62,
    errno.EPERM: 63,
    errno.EPIPE: 64,
    errno.EPROTO: 65,
    errno.EPROTONOSUPPORT: 66,
    errno.EPROTOTYPE: 67,
    errno.ERANGE: 68,
    errno.EROFS: 69,
    errno.ESPIPE: 70,
    errno.ESRCH: 71,
    errno.ESTALE: 72,
    errno.ETIMEDOUT: 73,
    errno.ETXTBSY: 74,
    errno.EXDEV: 75,
}
EBADF = 8
EINVAL = 28
EIO = 29
EMFILE = 33
ENOTCAPABLE = 76

# rights
FD_DATASYNC = 1 << 0
FD_READ = 1 << 1
FD_SEEK = 1 << 2
FD_FDSTAT_SET_FLAGS = 1 << 3
FD_SYNC = 1 << 4
FD_TELL = 1 << 5
FD_WRITE = 1 << 6
FD_ADVISE = 1 << 7
FD_ALLOCATE = 1 << 8
PATH_CREATE_DIRECTORY = 1 << 9
PATH_CREATE_FILE = 1 << 10
PATH_LINK_SOURCE = 1 << 11
PATH_LINK_TARGET = 1 << 12
PATH_OPEN = 1 << 13
FD_READDIR = 1 << 14
PATH_READLINK = 1 << 15
PATH_RENAME_SOURCE = 1 << 16
PATH_RENAME_TARGET = 1 << 17
PATH_FILESTAT_GET = 1 << 18
PATH_FILESTAT_SET_SIZE = 1 << 19
PATH_FILESTAT_SET_TIMES = 1 << 20
FD_FILESTAT_GET = 1 << 21
FD_FILESTAT_SET_SIZE = 1 << 22
FD_FILESTAT_SET_TIMES = 1 << 23
PATH_SYMLINK = 1 << 24
PATH_REMOVE_DIRECTORY = 1 << 25
PATH_UNLINK_FILE = 1 << 26
POLL_FD_READWRITE = 1 << 27
SOCK_SHUTDOWN = 1 << 28
SOCK_ACCEPT = 1 << 29

# filetype
UNKNOWN = 0
BLOCK_DEVICE = 1
CHARACTER_DEVICE = 2
DIRECTORY = 3
REGULAR_FILE = 4
SOCKET_DGRAM = 5
SOCKET_STREAM = 6
SYMBOLIC_LINK = 7

# fdflags
APPEND = 1 << 0
DSYNC = 1 << 1
NONBLOCK = 1 << 2
RSYNC = 1 << 3
SYNC = 1 << 4

# oflags
O_CREAT = 1 << 0
O_DIRECTORY = 1 << 1
O_EXCL = 1 << 2
O_TRUNC = 1 << 3

# lookupflags
SYMLINK_FOLLOW = 1 << 0

# fstflags
ATIM = 1 << 0
ATIM_NOW = 1 << 1
MTIM = 1 << 2
MTIM_NOW = 1 << 3

# riflags, roflags, sdflags
RECV_PEEK = 1 << 0
RECV_WAITALL = 1 << 1
RECV_DATA_TRUNCATED = 1 << 0
SHUT_RD = 1 << 0
SHUT_WR = 1 << 1

# Iovecs of one call; IOV_MAX of limits.h, which readv(2) enforces too.
IOV_MAX = 1024

# struct fdstat: filetype, flags, rights_base, rights_inheriting
FDSTAT = struct.Struct("<BxH4xQQ")
# struct filestat: dev, ino, filetype, nlink, size, atim, mtim, ctim (times in nanoseconds)
FILESTAT = struct.Struct("<QQB7xQQQQQ")
# struct prestat: tag 0 (directory), length of its name
PRESTAT = struct.Struct("<B3xI")
# struct dirent: next cookie, inode, length of the name, filetype; the name follows
DIRENT = struct.Struct("<QQIB3x")
# struct subscription: userdata, tag, then a union at offset 16
SUBSCRIPTION_SIZE = 48
SUBSCRIPTION = struct.Struct("<QB")
SUBSCRIPTION_CLOCK = struct.Struct("<I4xQQH")
SUBSCRIPTION_FD = struct.Struct("<I")
# struct event: userdata, error, eventtype, then fd_readwrite: nbytes, flags
EVENT_SIZE = 32
EVENT = struct.Struct("<QHB5xQH6x")
EVENT_CLOCK = 0
EVENT_FD_READ = 1
EVENT_FD_WRITE = 2
EVENT_HANGUP = 1
SUBSCRIPTION_CLOCK_ABSTIME = 1

# clockid
CLOCK_REALTIME = 0
CLOCK_MONOTONIC = 1
