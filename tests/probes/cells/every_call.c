/*
 * Every function of preview 1, in one order that suits whatever a descriptor is: what each says is
 * printed as data, a line each:
 *
 *     CALL: ERRNO RESULT
 *
 *     every_call NUMBER         the functions on that descriptor; never waits, and closes it
 *     every_call                the functions that are about no descriptor
 *
 * The descriptor is read first, so whoever grants a pipe or a socket has sent something before. For
 * paths it should be a directory with a regular file `f`, and with nothing else of these names.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wasi/api.h>

#define MOST_VECTORS 1024
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* wasi/api.h has it no more. */
__attribute__((__import_module__("wasi_snapshot_preview1"), __import_name__("proc_raise"))) int32_t
    proc_raise(int32_t signal);

static __wasi_fd_t fd;
static uint8_t buffer[4096];
static __wasi_iovec_t into[MOST_VECTORS + 1];
static __wasi_ciovec_t from[MOST_VECTORS + 1];
static __wasi_size_t size;
static __wasi_filesize_t offset;
static __wasi_fd_t opened;

static void say(const char *call, __wasi_errno_t error, const char *format, ...) {
    va_list values;

    printf("%s: %u", call, (unsigned)error);
    if (error == 0 && format[0] != '\0') {
        putchar(' ');
        va_start(values, format);
        vprintf(format, values);
        va_end(values);
    }
    putchar('\n');
}

/* Make vectors over the buffer, of some sizes, and return how many. */
static size_t room(const size_t *sizes, size_t count) {
    uint8_t *at = buffer;

    memset(buffer, 0, sizeof buffer);
    for (size_t i = 0; i < count; i++) {
        into[i] = (__wasi_iovec_t){.buf = at, .buf_len = sizes[i]};
        at += sizes[i];
    }
    return count;
}

static size_t texts(const char *const *text, size_t count) {
    for (size_t i = 0; i < count; i++) {
        from[i] = (__wasi_ciovec_t){.buf = (const uint8_t *)text[i], .buf_len = strlen(text[i])};
    }
    return count;
}

#define ROOM(...) room((const size_t[]){__VA_ARGS__}, COUNT(((const size_t[]){__VA_ARGS__})))
#define TEXTS(...)                                                                                 \
    texts((const char *const[]){__VA_ARGS__}, COUNT(((const char *const[]){__VA_ARGS__})))

/* What was read, where a NUL would hide what comes after it. */
static const char *shown(__wasi_size_t count) {
    for (__wasi_size_t i = 0; i < count; i++) {
        if (buffer[i] == '\0') {
            buffer[i] = '.';
        }
    }
    buffer[count] = '\0';
    return (const char *)buffer;
}

static void read_into(const char *call, size_t count) {
    __wasi_errno_t error = __wasi_fd_read(fd, into, count, &size);

    say(call, error, "%u <%s>", (unsigned)size, error ? "" : shown(size));
}

static void pread_into(const char *call, size_t count, uint64_t at) {
    __wasi_errno_t error = __wasi_fd_pread(fd, into, count, at, &size);

    say(call, error, "%u <%s>", (unsigned)size, error ? "" : shown(size));
}

static void write_from(const char *call, size_t count) {
    say(call, __wasi_fd_write(fd, from, count, &size), "%u", (unsigned)size);
}

static void pwrite_from(const char *call, size_t count, uint64_t at) {
    say(call, __wasi_fd_pwrite(fd, from, count, at, &size), "%u", (unsigned)size);
}

static void seek(const char *call, int64_t by, unsigned whence) {
    say(call, __wasi_fd_seek(fd, by, (__wasi_whence_t)whence, &offset), "%llu", offset);
}

static void fdstat(const char *call, __wasi_fd_t number) {
    __wasi_fdstat_t stat = {0};

    say(call, __wasi_fd_fdstat_get(number, &stat), "type=%u flags=%u rights=%llx inheriting=%llx",
        (unsigned)stat.fs_filetype, (unsigned)stat.fs_flags, stat.fs_rights_base,
        stat.fs_rights_inheriting);
}

/* What a call has made, by the call's name; closes it. */
static void made(const char *call) {
    char text[100];

    snprintf(text, sizeof text, "fd_fdstat_get after %s", call);
    fdstat(text, opened);
    snprintf(text, sizeof text, "fd_close after %s", call);
    say(text, __wasi_fd_close(opened), "");
}

/* How large anything but a regular file is, is its maker's business. */
static void filestat(const char *call, __wasi_errno_t error, const __wasi_filestat_t *stat) {
    if (stat->filetype == __WASI_FILETYPE_REGULAR_FILE) {
        say(call, error, "type=%u size=%llu", (unsigned)stat->filetype, stat->size);
    } else {
        say(call, error, "type=%u", (unsigned)stat->filetype);
    }
}

static void set_flags(const char *call, unsigned flags) {
    say(call, __wasi_fd_fdstat_set_flags(fd, (__wasi_fdflags_t)flags), "");
}

static void set_times(const char *call, unsigned flags) {
    say(call, __wasi_fd_filestat_set_times(fd, 1000000001, 2000000002, (__wasi_fstflags_t)flags),
        "");
}

static void list(const char *call, size_t room_size, uint64_t cookie) {
    char names[1024] = "";
    size_t at = 0;
    __wasi_dirent_t entry;
    __wasi_errno_t error = __wasi_fd_readdir(fd, buffer, room_size, cookie, &size);

    if (room_size < sizeof buffer) {
        say(call, error, "%u", (unsigned)size);
        return;
    }
    while (!error && at + sizeof entry <= size) {
        memcpy(&entry, buffer + at, sizeof entry);
        at += sizeof entry;
        snprintf(names + strlen(names), sizeof names - strlen(names), " %.*s", (int)entry.d_namlen,
                 (const char *)buffer + at);
        at += entry.d_namlen;
    }
    say(call, error, "%s", names);
}

static void open_path(const char *call, const char *path, unsigned oflags, uint64_t rights,
                      unsigned fdflags) {
    __wasi_errno_t error =
        __wasi_path_open(fd, __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW, path, (__wasi_oflags_t)oflags,
                         rights, 0, (__wasi_fdflags_t)fdflags, &opened);

    say(call, error, "%u", (unsigned)opened);
    if (error == 0) {
        made(call);
    }
}

static void accept(const char *call, unsigned flags) {
    __wasi_errno_t error = __wasi_sock_accept(fd, (__wasi_fdflags_t)flags, &opened);

    say(call, error, "%u", (unsigned)opened);
    if (error == 0) {
        made(call);
    }
}

static void receive(const char *call, size_t count, unsigned flags) {
    __wasi_roflags_t told = 0;
    __wasi_errno_t error =
        __wasi_sock_recv(fd, into, count, (__wasi_riflags_t)flags, &size, &told);

    say(call, error, "%u <%s> flags=%u", (unsigned)size, error ? "" : shown(size), (unsigned)told);
}

static void send(const char *call, size_t count, unsigned flags) {
    say(call, __wasi_sock_send(fd, from, count, (__wasi_siflags_t)flags, &size), "%u",
        (unsigned)size);
}

/* Wait for reading, writing and two clocks of which one is due; nothing of it takes any time. */
static void wait(void) {
    __wasi_subscription_t wanted[] = {
        {.userdata = 1, .u.tag = __WASI_EVENTTYPE_FD_READ, .u.u.fd_read.file_descriptor = fd},
        {.userdata = 2, .u.tag = __WASI_EVENTTYPE_FD_WRITE, .u.u.fd_write.file_descriptor = fd},
        {.userdata = 3, .u.tag = __WASI_EVENTTYPE_FD_READ, .u.u.fd_read.file_descriptor = 77},
        {.userdata = 4,
         .u.tag = __WASI_EVENTTYPE_CLOCK,
         .u.u.clock = {.id = __WASI_CLOCKID_MONOTONIC, .timeout = 1ull << 60}},
        {.userdata = 5,
         .u.tag = __WASI_EVENTTYPE_CLOCK,
         .u.u.clock = {.id = __WASI_CLOCKID_REALTIME,
                       .timeout = 1,
                       .flags = __WASI_SUBCLOCKFLAGS_SUBSCRIPTION_CLOCK_ABSTIME}},
    };
    __wasi_event_t due[COUNT(wanted)];
    __wasi_errno_t error = __wasi_poll_oneoff(wanted, due, COUNT(wanted), &size);

    say("poll_oneoff", error, "%u", (unsigned)size);
    for (__wasi_size_t i = 0; error == 0 && i < size; i++) {
        char call[64];

        snprintf(call, sizeof call, "poll_oneoff: event %llu", due[i].userdata);
        say(call, due[i].error, "type=%u bytes=%llu flags=%u", (unsigned)due[i].type,
            due[i].type == __WASI_EVENTTYPE_CLOCK ? 0 : due[i].fd_readwrite.nbytes,
            due[i].type == __WASI_EVENTTYPE_CLOCK ? 0 : (unsigned)due[i].fd_readwrite.flags);
    }
    say("poll_oneoff of nothing", __wasi_poll_oneoff(wanted, due, 0, &size), "");
}

static void what_it_is(void) {
    __wasi_filestat_t stat = {0};
    __wasi_prestat_t prestat = {0};
    __wasi_errno_t error;

    fdstat("fd_fdstat_get", fd);
    error = __wasi_fd_filestat_get(fd, &stat);
    filestat("fd_filestat_get", error, &stat);
    error = __wasi_fd_prestat_get(fd, &prestat);
    say("fd_prestat_get", error, "%u %u", (unsigned)prestat.tag,
        (unsigned)prestat.u.dir.pr_name_len);
    memset(buffer, 0, sizeof buffer);
    error = __wasi_fd_prestat_dir_name(fd, buffer, 100);
    say("fd_prestat_dir_name", error, "%s", (const char *)buffer);
    say("fd_prestat_dir_name without room", __wasi_fd_prestat_dir_name(fd, buffer, 0), "");
}

static void data(void) {
    set_flags("fd_fdstat_set_flags NONBLOCK", __WASI_FDFLAGS_NONBLOCK);
    say("fd_tell", __wasi_fd_tell(fd, &offset), "%llu", offset);
    seek("fd_seek SET", 2, __WASI_WHENCE_SET);
    seek("fd_seek CUR", 2, __WASI_WHENCE_CUR);
    seek("fd_seek END", 0, __WASI_WHENCE_END);
    seek("fd_seek before the start", -1, __WASI_WHENCE_SET);
    seek("fd_seek from nowhere", 0, 3);
    seek("fd_seek to the start", 0, __WASI_WHENCE_SET);
    say("fd_advise", __wasi_fd_advise(fd, 0, 0, __WASI_ADVICE_WILLNEED), "");
    say("fd_advise of no kind", __wasi_fd_advise(fd, 0, 0, 6), "");

    read_into("fd_read", ROOM(4));
    read_into("fd_read of two", ROOM(2, 3));
    read_into("fd_read of no vectors", 0);
    read_into("fd_read of nothing", ROOM(0));
    read_into("fd_read of too many", MOST_VECTORS + 1);
    pread_into("fd_pread", ROOM(4), 1);
    pread_into("fd_pread at 2**63", ROOM(4), 1ull << 63);
    write_from("fd_write", TEXTS("AB"));
    write_from("fd_write of two", TEXTS("C", "DE"));
    write_from("fd_write of no vectors", 0);
    write_from("fd_write of nothing", TEXTS(""));
    write_from("fd_write of too many", MOST_VECTORS + 1);
    pwrite_from("fd_pwrite", TEXTS("xy"), 0);
    pwrite_from("fd_pwrite at 2**63", TEXTS("xy"), 1ull << 63);
}

static void state(void) {
    __wasi_filestat_t stat = {0};

    say("fd_filestat_set_size", __wasi_fd_filestat_set_size(fd, 20), "");
    say("fd_filestat_set_size to 2**63", __wasi_fd_filestat_set_size(fd, 1ull << 63), "");
    say("fd_allocate", __wasi_fd_allocate(fd, 0, 40), "");
    say("fd_allocate of nothing", __wasi_fd_allocate(fd, 0, 0), "");
    say("fd_allocate at 2**63", __wasi_fd_allocate(fd, 1ull << 63, 1), "");
    filestat("fd_filestat_get again", __wasi_fd_filestat_get(fd, &stat), &stat);
    set_times("fd_filestat_set_times", __WASI_FSTFLAGS_ATIM | __WASI_FSTFLAGS_MTIM);
    set_times("fd_filestat_set_times to now", __WASI_FSTFLAGS_ATIM_NOW | __WASI_FSTFLAGS_MTIM_NOW);
    set_times("fd_filestat_set_times of none", 0);
    set_times("fd_filestat_set_times twice", __WASI_FSTFLAGS_ATIM | __WASI_FSTFLAGS_ATIM_NOW);
    set_times("fd_filestat_set_times unknown", 1 << 4);
    say("fd_sync", __wasi_fd_sync(fd), "");
    say("fd_datasync", __wasi_fd_datasync(fd), "");
    set_flags("fd_fdstat_set_flags APPEND", __WASI_FDFLAGS_APPEND | __WASI_FDFLAGS_NONBLOCK);
    set_flags("fd_fdstat_set_flags DSYNC", __WASI_FDFLAGS_DSYNC | __WASI_FDFLAGS_NONBLOCK);
    set_flags("fd_fdstat_set_flags RSYNC", __WASI_FDFLAGS_RSYNC | __WASI_FDFLAGS_NONBLOCK);
    set_flags("fd_fdstat_set_flags SYNC", __WASI_FDFLAGS_SYNC | __WASI_FDFLAGS_NONBLOCK);
    set_flags("fd_fdstat_set_flags unknown", 1 << 5 | __WASI_FDFLAGS_NONBLOCK);
    fdstat("fd_fdstat_get again", fd);
}

static void paths(void) {
    const uint64_t reading = __WASI_RIGHTS_FD_READ | __WASI_RIGHTS_FD_SEEK;
    __wasi_filestat_t stat = {0};
    __wasi_errno_t error;

    list("fd_readdir", sizeof buffer, 0);
    list("fd_readdir into 10 bytes", 10, 0);
    list("fd_readdir beyond the end", 100, UINT64_MAX);
    open_path("path_open", "f", 0, reading, 0);
    open_path("path_open to write", "f", 0, __WASI_RIGHTS_FD_WRITE, __WASI_FDFLAGS_APPEND);
    open_path("path_open of nothing", "nothing", 0, reading, 0);
    open_path("path_open CREAT", "new", __WASI_OFLAGS_CREAT, reading | __WASI_RIGHTS_FD_WRITE, 0);
    open_path("path_open CREAT|EXCL", "f", __WASI_OFLAGS_CREAT | __WASI_OFLAGS_EXCL, reading, 0);
    open_path("path_open DIRECTORY", ".", __WASI_OFLAGS_DIRECTORY, __WASI_RIGHTS_FD_READDIR, 0);
    open_path("path_open above", "..", 0, reading, 0);
    open_path("path_open unknown", "f", 1 << 4, reading, 0);
    error = __wasi_path_filestat_get(fd, 0, "f", &stat);
    say("path_filestat_get", error, "type=%u", (unsigned)stat.filetype);
    error = __wasi_path_filestat_get(fd, __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW, "f", &stat);
    filestat("path_filestat_get SYMLINK_FOLLOW", error, &stat);
    say("path_filestat_set_times",
        __wasi_path_filestat_set_times(fd, 0, "f", 0, 0,
                                       __WASI_FSTFLAGS_ATIM_NOW | __WASI_FSTFLAGS_MTIM_NOW),
        "");
    say("path_create_directory", __wasi_path_create_directory(fd, "d"), "");
    say("path_create_directory again", __wasi_path_create_directory(fd, "d"), "");
    say("path_symlink", __wasi_path_symlink("f", fd, "s"), "");
    memset(buffer, 0, sizeof buffer);
    error = __wasi_path_readlink(fd, "s", buffer, 100, &size);
    say("path_readlink", error, "%s", (const char *)buffer);
    memset(buffer, 0, sizeof buffer);
    error = __wasi_path_readlink(fd, "f", buffer, 100, &size);
    say("path_readlink of f", error, "%s", (const char *)buffer);
    say("path_link", __wasi_path_link(fd, 0, "f", fd, "l"), "");
    say("path_rename", __wasi_path_rename(fd, "l", fd, "m"), "");
    say("path_rename to a closed number", __wasi_path_rename(fd, "f", 77, "m"), "");
    say("path_unlink_file of a directory", __wasi_path_unlink_file(fd, "d"), "");
    say("path_remove_directory of a file", __wasi_path_remove_directory(fd, "f"), "");
    say("path_unlink_file", __wasi_path_unlink_file(fd, "m"), "");
    say("path_remove_directory", __wasi_path_remove_directory(fd, "d"), "");
}

static void sockets(void) {
    receive("sock_recv PEEK", ROOM(2), __WASI_RIFLAGS_RECV_PEEK);
    receive("sock_recv WAITALL", ROOM(2, 1), __WASI_RIFLAGS_RECV_WAITALL);
    receive("sock_recv unknown", ROOM(4), 1 << 2);
    send("sock_send", TEXTS("s"), 0);
    send("sock_send of two", TEXTS("t", "u"), 0);
    send("sock_send of no vectors", 0, 0);
    send("sock_send unknown", TEXTS("v"), 1);
    accept("sock_accept", 0);
    accept("sock_accept NONBLOCK", __WASI_FDFLAGS_NONBLOCK);
    accept("sock_accept unknown", __WASI_FDFLAGS_APPEND);
    accept("sock_accept of nobody", 0);
    say("sock_shutdown of nothing", __wasi_sock_shutdown(fd, 0), "");
    say("sock_shutdown WR", __wasi_sock_shutdown(fd, __WASI_SDFLAGS_WR), "");
    write_from("fd_write after sock_shutdown", TEXTS("w"));
    say("sock_shutdown RD|WR", __wasi_sock_shutdown(fd, __WASI_SDFLAGS_RD | __WASI_SDFLAGS_WR), "");
}

static void end(void) {
    __wasi_fdstat_t stat = {0};
    __wasi_filestat_t unused;

    say("fd_fdstat_set_rights to the same",
        __wasi_fd_fdstat_get(fd, &stat) ||
            __wasi_fd_fdstat_set_rights(fd, stat.fs_rights_base, stat.fs_rights_inheriting), "");
    say("fd_fdstat_set_rights to more",
        __wasi_fd_fdstat_set_rights(fd, UINT64_MAX, stat.fs_rights_inheriting), "");
    say("fd_fdstat_set_rights to inherit more",
        __wasi_fd_fdstat_set_rights(fd, stat.fs_rights_base, UINT64_MAX), "");
    say("fd_fdstat_set_rights to none", __wasi_fd_fdstat_set_rights(fd, 0, 0), "");
    say("fd_fdstat_set_rights back", __wasi_fd_fdstat_set_rights(fd, stat.fs_rights_base, 0), "");
    fdstat("fd_fdstat_get of none", fd);
    say("fd_filestat_get of none", __wasi_fd_filestat_get(fd, &unused), "");
    read_into("fd_read of none", ROOM(1));

    say("fd_renumber to itself", __wasi_fd_renumber(fd, fd), "");
    say("fd_renumber to a closed number", __wasi_fd_renumber(fd, 77), "");
    say("fd_renumber from a closed number", __wasi_fd_renumber(77, fd), "");
    say("fd_renumber out of range", __wasi_fd_renumber(fd, UINT32_MAX), "");
    say("fd_renumber", __wasi_fd_renumber(fd, 2), "");
    fdstat("fd_fdstat_get of the old number", fd);
    fd = 2;
    fdstat("fd_fdstat_get of the new number", fd);
    say("fd_close", __wasi_fd_close(fd), "");
    say("fd_close again", __wasi_fd_close(fd), "");
    say("fd_renumber to what was closed", __wasi_fd_renumber(0, fd), "");
}

static void about_no_descriptor(void) {
    __wasi_size_t count = 0, bytes = 0;
    __wasi_timestamp_t time = 0;
    char *pointers[8] = {0};
    char text[1024];
    __wasi_errno_t error;

    error = __wasi_args_sizes_get(&count, &bytes);
    say("args_sizes_get", error, "%u", (unsigned)count);
    error = __wasi_args_get((uint8_t **)pointers, (uint8_t *)text);
    say("args_get", error, "%s", strrchr(pointers[0], '/') == NULL ? pointers[0] : "a path");
    error = __wasi_environ_sizes_get(&count, &bytes);
    say("environ_sizes_get", error, "%u", (unsigned)count);
    error = __wasi_environ_get((uint8_t **)pointers, (uint8_t *)text);
    say("environ_get", error, "%s", pointers[0]);
    for (unsigned clock = 0; clock < 5; clock++) {
        char call[64];

        snprintf(call, sizeof call, "clock_res_get of %u", clock);
        error = __wasi_clock_res_get(clock, &time);
        say(call, error, "%s", time > 0 ? "some" : "none");
        snprintf(call, sizeof call, "clock_time_get of %u", clock);
        error = __wasi_clock_time_get(clock, 1, &time);
        say(call, error, "%s", time > 0 ? "some" : "none");
    }
    memset(text, 0, sizeof text);
    error = __wasi_random_get((uint8_t *)text, sizeof text);
    int random = 0;
    for (size_t at = 0; at < sizeof text; at++) {
        random |= text[at];
    }
    say("random_get", error, "%s", random != 0 ? "some" : "none");
    say("sched_yield", __wasi_sched_yield(), "");
    say("proc_raise", (__wasi_errno_t)proc_raise(0), "");
    fflush(stdout);
    __wasi_proc_exit(47);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        about_no_descriptor();
    }
    fd = (__wasi_fd_t)strtoul(argv[1], NULL, 10);
    what_it_is();
    data();
    state();
    paths();
    wait();
    sockets();
    end();
    return 0;
}
