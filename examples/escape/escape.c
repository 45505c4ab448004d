/*
 * The attack cell: tries to use what it was not granted, and to use what it was granted for more
 * than its mode says. One line an attempt on stdout, `held: ...` or `BROKEN: ...`; the exit status
 * is 0 only if everything held.
 *
 * The calls of WASI are declared here once more, with plain integers for pointers: an attacker
 * passes lengths and addresses that the C library would never pass, and tries numbers that it would
 * filter out. Damage is the point: a write that gets through really writes. Grant it nothing of
 * value.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wasi/api.h>

#define IMPORT(name)                                                                               \
    __attribute__((__import_module__("wasi_snapshot_preview1"), __import_name__(#name)))

typedef uint32_t ptr; /* an address in this cell's memory, valid or not */

IMPORT(fd_advise) int32_t w_fd_advise(uint32_t, uint64_t, uint64_t, uint32_t);
IMPORT(fd_allocate) int32_t w_fd_allocate(uint32_t, uint64_t, uint64_t);
IMPORT(fd_close) int32_t w_fd_close(uint32_t);
IMPORT(fd_datasync) int32_t w_fd_datasync(uint32_t);
IMPORT(fd_fdstat_get) int32_t w_fd_fdstat_get(uint32_t, ptr);
IMPORT(fd_fdstat_set_flags) int32_t w_fd_fdstat_set_flags(uint32_t, uint32_t);
IMPORT(fd_fdstat_set_rights) int32_t w_fd_fdstat_set_rights(uint32_t, uint64_t, uint64_t);
IMPORT(fd_filestat_get) int32_t w_fd_filestat_get(uint32_t, ptr);
IMPORT(fd_filestat_set_size) int32_t w_fd_filestat_set_size(uint32_t, uint64_t);
IMPORT(fd_filestat_set_times)
int32_t w_fd_filestat_set_times(uint32_t, uint64_t, uint64_t, uint32_t);
IMPORT(fd_pread) int32_t w_fd_pread(uint32_t, ptr, uint32_t, uint64_t, ptr);
IMPORT(fd_prestat_get) int32_t w_fd_prestat_get(uint32_t, ptr);
IMPORT(fd_prestat_dir_name) int32_t w_fd_prestat_dir_name(uint32_t, ptr, uint32_t);
IMPORT(fd_pwrite) int32_t w_fd_pwrite(uint32_t, ptr, uint32_t, uint64_t, ptr);
IMPORT(fd_read) int32_t w_fd_read(uint32_t, ptr, uint32_t, ptr);
IMPORT(fd_readdir) int32_t w_fd_readdir(uint32_t, ptr, uint32_t, uint64_t, ptr);
IMPORT(fd_renumber) int32_t w_fd_renumber(uint32_t, uint32_t);
IMPORT(fd_seek) int32_t w_fd_seek(uint32_t, int64_t, uint32_t, ptr);
IMPORT(fd_sync) int32_t w_fd_sync(uint32_t);
IMPORT(fd_tell) int32_t w_fd_tell(uint32_t, ptr);
IMPORT(fd_write) int32_t w_fd_write(uint32_t, ptr, uint32_t, ptr);
IMPORT(path_create_directory) int32_t w_path_create_directory(uint32_t, ptr, uint32_t);
IMPORT(path_filestat_get) int32_t w_path_filestat_get(uint32_t, uint32_t, ptr, uint32_t, ptr);
IMPORT(path_link) int32_t w_path_link(uint32_t, uint32_t, ptr, uint32_t, uint32_t, ptr, uint32_t);
IMPORT(path_open)
int32_t w_path_open(uint32_t, uint32_t, ptr, uint32_t, uint32_t, uint64_t, uint64_t, uint32_t, ptr);
IMPORT(path_readlink) int32_t w_path_readlink(uint32_t, ptr, uint32_t, ptr, uint32_t, ptr);
IMPORT(path_remove_directory) int32_t w_path_remove_directory(uint32_t, ptr, uint32_t);
IMPORT(path_rename) int32_t w_path_rename(uint32_t, ptr, uint32_t, uint32_t, ptr, uint32_t);
IMPORT(path_symlink) int32_t w_path_symlink(ptr, uint32_t, uint32_t, ptr, uint32_t);
IMPORT(path_unlink_file) int32_t w_path_unlink_file(uint32_t, ptr, uint32_t);
IMPORT(poll_oneoff) int32_t w_poll_oneoff(ptr, ptr, uint32_t, ptr);
IMPORT(sock_accept) int32_t w_sock_accept(uint32_t, uint32_t, ptr);
IMPORT(sock_recv) int32_t w_sock_recv(uint32_t, ptr, uint32_t, uint32_t, ptr, ptr);
IMPORT(sock_send) int32_t w_sock_send(uint32_t, ptr, uint32_t, uint32_t, ptr);
IMPORT(sock_shutdown) int32_t w_sock_shutdown(uint32_t, uint32_t);

#define AT(object) ((ptr)(uintptr_t)(object))
#define NUMBERS 65536u
#define DENSE 64u /* the numbers that get the long list of paths */

#define RIGHT_READ ((uint64_t)__WASI_RIGHTS_FD_READ)
#define RIGHT_WRITE ((uint64_t)__WASI_RIGHTS_FD_WRITE)
/* The 30 rights that exist: an engine may end a cell that names a bit which means nothing. */
#define RIGHT_ALL (((uint64_t)1 << 30) - 1)

extern char **environ;

/* --- what was granted ------------------------------------------------------------------------- */

struct grant {
    uint32_t fd;
    char name[64];
    bool read, write, directory;
};

static struct grant grants[512];
static uint32_t grant_count;
static uint8_t
    known[NUMBERS]; /* stdio, a grant, or a preopened directory that stands for a grant */
static int held_count, broken_count;

static void verdict(bool held, const char *what) {
    if (held) {
        held_count++;
    } else {
        broken_count++;
    }
    printf("%s: %s\n", held ? "held" : "BROKEN", what);
    fflush(stdout);
}

static struct grant *grant_of(uint32_t fd) {
    for (uint32_t i = 0; i < grant_count; i++) {
        if (grants[i].fd == fd) {
            return &grants[i];
        }
    }
    return NULL;
}

/* WW_FDS is `((NAME (fd N) (mode "M") (type "T")) ...)`, exactly. */
static void read_grants(void) {
    const char *at = getenv("WW_FDS");

    if (at == NULL || *at != '(') {
        fprintf(stderr, "escape: WW_FDS is not set: run this with ww\n");
        exit(2);
    }
    for (at++; *at == '(' || *at == ' '; at++) {
        struct grant *grant = &grants[grant_count];
        char mode[3], type[16];
        int used = 0;

        if (*at == ' ') {
            continue;
        }
        if (grant_count == sizeof grants / sizeof *grants ||
            sscanf(at, "(%63[A-Za-z0-9_-] (fd %u) (mode \"%2[rw]\") (type \"%15[a-z]\"))%n",
                   grant->name, &grant->fd, mode, type, &used) != 4 ||
            used == 0 || grant->fd >= NUMBERS) {
            fprintf(stderr, "escape: WW_FDS is not of the documented form at: %.40s\n", at);
            exit(2);
        }
        grant->read = strchr(mode, 'r') != NULL;
        grant->write = strchr(mode, 'w') != NULL;
        known[grant->fd] = 1;
        grant_count++;
        at += used - 1;
    }
    if (strcmp(at, ")") != 0) {
        fprintf(stderr, "escape: WW_FDS is not of the documented form at: %.40s\n", at);
        exit(2);
    }
    known[0] = known[1] = known[2] = 1;
}

static bool is_granted_name(const char *name) {
    while (*name == '/') {
        name++;
    }
    for (uint32_t i = 0; i < grant_count; i++) {
        if (strcmp(grants[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

/* Everything that a directory lists must be a grant's name: what the root of the pathlinks may be.
 */
static bool lists_only_grants(uint32_t fd) {
    static uint8_t buffer[16384];
    uint32_t used = 0;

    if (w_fd_readdir(fd, AT(buffer), sizeof buffer, 0, AT(&used)) != 0) {
        return true;
    }
    for (uint32_t at = 0; at + sizeof(__wasi_dirent_t) <= used;) {
        __wasi_dirent_t entry;
        char name[256];

        memcpy(&entry, buffer + at, sizeof entry);
        at += sizeof entry;
        if (entry.d_namlen >= sizeof name || at + entry.d_namlen > used) {
            break;
        }
        memcpy(name, buffer + at, entry.d_namlen);
        name[entry.d_namlen] = '\0';
        at += entry.d_namlen;
        if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && !is_granted_name(name)) {
            return false;
        }
    }
    return true;
}

/*
 * A granted directory is preopened twice: at its own number and from 3 up, where every C library
 * looks.
 * `/` may be there too, for the pathlinks. Anything else that is preopened was not granted.
 */
static void find_preopens(void) {
    for (uint32_t i = 0; i < grant_count; i++) {
        __wasi_fdstat_t stat;

        if (w_fd_fdstat_get(grants[i].fd, AT(&stat)) == 0) {
            grants[i].directory = stat.fs_filetype == __WASI_FILETYPE_DIRECTORY;
        }
    }
    for (uint32_t fd = 3; fd < NUMBERS; fd++) {
        __wasi_prestat_t prestat;
        char name[256] = "", line[400];
        uint32_t length;
        bool fine;

        if (w_fd_prestat_get(fd, AT(&prestat)) != 0) {
            continue;
        }
        length = (uint32_t)prestat.u.dir.pr_name_len;
        if (length < sizeof name) {
            (void)w_fd_prestat_dir_name(fd, AT(name), length);
        }
        fine = strcmp(name, "/") == 0 ? lists_only_grants(fd) : is_granted_name(name);
        snprintf(line, sizeof line, "preopened directory %u is called \"%s\"", fd, name);
        verdict(fine, line);
        if (fine) {
            known[fd] = 1;
        }
    }
}

/* --- calls on numbers that were not granted --------------------------------------------------- */

static uint8_t scratch[256];
static uint8_t byte = 'X';
static struct {
    ptr buffer;
    uint32_t length;
} vector;
static uint32_t result, result2;
static uint32_t victim; /* a granted number, or stdout: the target of fd_renumber */

static int32_t try_path(uint32_t fd, const char *path, uint64_t rights, uint32_t oflags) {
    int32_t error =
        w_path_open(fd, 1, AT(path), (uint32_t)strlen(path), oflags, rights, 0, 0, AT(&result));

    if (error == 0) {
        (void)w_fd_close(result);
    }
    return error;
}

static int32_t try_poll(uint32_t fd) {
    /* Two subscriptions: readable on fd, and a clock that has already run out, so that it never
     * waits. */
    static __wasi_subscription_t asked[2];
    static __wasi_event_t events[2];
    uint32_t count = 0;

    memset(asked, 0, sizeof asked);
    asked[0].userdata = 1;
    asked[0].u.tag = __WASI_EVENTTYPE_FD_READ;
    asked[0].u.u.fd_read.file_descriptor = (__wasi_fd_t)fd;
    asked[1].userdata = 2;
    asked[1].u.tag = __WASI_EVENTTYPE_CLOCK;
    asked[1].u.u.clock.id = __WASI_CLOCKID_MONOTONIC;
    int32_t error = w_poll_oneoff(AT(asked), AT(events), 2, AT(&count));
    if (error != 0) {
        return error;
    }
    for (uint32_t i = 0; i < count && i < 2; i++) {
        if (events[i].userdata == 1) {
            return events[i].error;
        }
    }
    return 0;
}

#define CALL(name, expression)                                                                     \
    static int32_t call_##name(uint32_t fd) {                                                      \
        return expression;                                                                         \
    }
CALL(fd_fdstat_get, w_fd_fdstat_get(fd, AT(scratch)))
CALL(fd_filestat_get, w_fd_filestat_get(fd, AT(scratch)))
CALL(fd_prestat_get, w_fd_prestat_get(fd, AT(scratch)))
CALL(fd_prestat_dir_name, w_fd_prestat_dir_name(fd, AT(scratch), 1))
CALL(fd_read, w_fd_read(fd, AT(&vector), 1, AT(&result)))
CALL(fd_pread, w_fd_pread(fd, AT(&vector), 1, 0, AT(&result)))
CALL(fd_write, w_fd_write(fd, AT(&vector), 1, AT(&result)))
CALL(fd_pwrite, w_fd_pwrite(fd, AT(&vector), 1, 0, AT(&result)))
CALL(fd_seek, w_fd_seek(fd, 0, 0, AT(scratch)))
CALL(fd_tell, w_fd_tell(fd, AT(scratch)))
CALL(fd_advise, w_fd_advise(fd, 0, 1, 0))
CALL(fd_allocate, w_fd_allocate(fd, 0, 4096))
CALL(fd_filestat_set_size, w_fd_filestat_set_size(fd, 0))
CALL(fd_filestat_set_times, w_fd_filestat_set_times(fd, 0, 0, 10))
CALL(fd_sync, w_fd_sync(fd))
CALL(fd_datasync, w_fd_datasync(fd))
CALL(fd_fdstat_set_flags, w_fd_fdstat_set_flags(fd, 0))
CALL(fd_fdstat_set_rights, w_fd_fdstat_set_rights(fd, 0, 0))
CALL(fd_readdir, w_fd_readdir(fd, AT(scratch), sizeof scratch, 0, AT(&result)))
CALL(path_open, try_path(fd, "etc/passwd", RIGHT_READ, 0))
CALL(path_open_root, try_path(fd, "/etc/passwd", RIGHT_READ, 0))
CALL(path_open_dot, try_path(fd, ".", RIGHT_READ, __WASI_OFLAGS_DIRECTORY))
CALL(path_open_proc, try_path(fd, "/proc/self/fd/0", RIGHT_READ, 0))
CALL(path_filestat_get, w_path_filestat_get(fd, 1, AT("."), 1, AT(scratch)))
CALL(sock_accept, w_sock_accept(fd, __WASI_FDFLAGS_NONBLOCK, AT(&result)))
CALL(sock_recv, w_sock_recv(fd, AT(&vector), 1, 0, AT(&result), AT(&result2)))
CALL(sock_send, w_sock_send(fd, AT(&vector), 1, 0, AT(&result)))
CALL(sock_shutdown, w_sock_shutdown(fd, 3))
CALL(poll_oneoff, try_poll(fd))
CALL(fd_renumber_onto_a_grant, w_fd_renumber(fd, victim))
CALL(fd_close, w_fd_close(fd))

static const struct {
    const char *name;
    int32_t (*call)(uint32_t);
} calls[] = {
#define ENTRY(name)                                                                                \
    { #name, call_##name }
    ENTRY(fd_fdstat_get),
    ENTRY(fd_filestat_get),
    ENTRY(fd_prestat_get),
    ENTRY(fd_prestat_dir_name),
    ENTRY(fd_read),
    ENTRY(fd_pread),
    ENTRY(fd_write),
    ENTRY(fd_pwrite),
    ENTRY(fd_seek),
    ENTRY(fd_tell),
    ENTRY(fd_advise),
    ENTRY(fd_allocate),
    ENTRY(fd_filestat_set_size),
    ENTRY(fd_filestat_set_times),
    ENTRY(fd_sync),
    ENTRY(fd_datasync),
    ENTRY(fd_fdstat_set_flags),
    ENTRY(fd_fdstat_set_rights),
    ENTRY(fd_readdir),
    ENTRY(path_open),
    ENTRY(path_open_root),
    ENTRY(path_open_dot),
    ENTRY(path_open_proc),
    ENTRY(path_filestat_get),
    ENTRY(sock_accept),
    ENTRY(sock_recv),
    ENTRY(sock_send),
    ENTRY(sock_shutdown),
    ENTRY(poll_oneoff),
    ENTRY(fd_renumber_onto_a_grant),
    ENTRY(fd_close),
#undef ENTRY
};

static void sweep(void) {
    /* Numbers that a host may get wrong when it narrows, adds to or compares them as signed. */
    static const uint32_t odd[] = {65536,      65537,      65536 + 10, 1000000,    0x7ffffffe,
                                   0x7fffffff, 0x80000000, 0x8000000a, 0xffff0000, 0xffff000a,
                                   0xfffffff0, 0xfffffffe, 0xffffffff};
    __wasi_fdstat_t before, after;
    char line[400];

    victim = grant_count > 0 ? grants[0].fd : 1;
    memset(&before, 0, sizeof before);
    memset(&after, 0, sizeof after);
    (void)w_fd_fdstat_get(victim, AT(&before));
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        uint32_t tried = 0, open = 0, first = 0, errors = 0, last = 0;

        for (uint32_t n = 0; n < NUMBERS + sizeof odd / sizeof *odd; n++) {
            uint32_t fd = n < NUMBERS ? n : odd[n - NUMBERS];

            if (fd < NUMBERS && known[fd]) {
                continue;
            }
            vector.buffer = AT(&byte);
            vector.length = 1;
            int32_t error = calls[i].call(fd);
            tried++;
            if (error == 0) {
                first = open++ == 0 ? fd : first;
            } else if (errors == 0 || (uint32_t)error != last) {
                errors++;
                last = (uint32_t)error;
            }
        }
        if (open > 0) {
            snprintf(line, sizeof line, "%s works on %u numbers that were not granted, first %u",
                     calls[i].name, open, first);
        } else if (errors == 1) {
            snprintf(line, sizeof line,
                     "%s is refused on %u numbers that were not granted (errno %u)", calls[i].name,
                     tried, last);
        } else {
            snprintf(line, sizeof line,
                     "%s is refused on %u numbers that were not granted (several errnos)",
                     calls[i].name, tried);
        }
        verdict(open == 0, line);
    }
    snprintf(line, sizeof line, "fd %u is what it was after all this", victim);
    verdict(w_fd_fdstat_get(victim, AT(&after)) == 0 && memcmp(&before, &after, sizeof before) == 0,
            line);
}

/* --- paths ------------------------------------------------------------------------------------ */

static const char *const outside[] = {
    "/",
    "//",
    "..",
    "../",
    "../..",
    "../../../../../../../..",
    "./..",
    "a/../..",
    "/..",
    "/../..",
    "/etc/passwd",
    "etc/passwd",
    "../etc/passwd",
    "../../etc/passwd",
    "../../../../../../../../etc/passwd",
    "//etc/passwd",
    "/./etc/passwd",
    "/../etc/passwd",
    "./../../etc/passwd",
    "/proc/self/exe",
    "/proc/self/maps",
    "/proc/self/mem",
    "/proc/self/environ",
    "/proc/self/cwd",
    "/proc/self/root",
    "/proc/self/root/etc/passwd",
    "/proc/1/root/etc/passwd",
    "/proc/1/environ",
    "/proc/thread-self/fd/0",
    "proc/self/exe",
    "proc/self/fd/0",
    "/dev/null",
    "/dev/mem",
    "/dev/fd/0",
    "/dev/stdin",
    "/dev/tty",
    "/sys",
    "/tmp",
    "/root",
    "/home",
    "/run",
    "/var/run/docker.sock",
    "/boot",
    "/etc/shadow",
    "/../../proc",
};

static bool is_path_of_a_grant(const char *path) {
    return path[0] == '/' && is_granted_name(path);
}

/* Whether a path that begins inside really names something inside: only then may a directory open
 * it. */
static bool may_be_inside(const char *path) {
    return path[0] != '/' && strncmp(path, "..", 2) != 0 && strstr(path, "/..") == NULL;
}

static void one_path(uint32_t fd, const char *path, uint32_t *opened, uint32_t *tried,
                     char *example, size_t size) {
    static const struct {
        uint64_t rights;
        uint32_t oflags;
    } ways[] = {
        {RIGHT_READ, 0},
        {RIGHT_READ, __WASI_OFLAGS_DIRECTORY},
        {RIGHT_READ | RIGHT_WRITE, 0},
        {RIGHT_WRITE, __WASI_OFLAGS_CREAT},
        {0, 0},
        {RIGHT_ALL, 0},
    };
    struct grant *grant = grant_of(fd);
    __wasi_prestat_t prestat;
    /* Below a granted directory there may well be an etc/passwd: that one is granted. */
    bool directory =
        fd < NUMBERS && known[fd] && fd > 2 &&
        ((grant != NULL && grant->directory) || w_fd_prestat_get(fd, AT(&prestat)) == 0);

    if (is_path_of_a_grant(path) || (directory && may_be_inside(path))) {
        return;
    }
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        (*tried)++;
        if (try_path(fd, path, ways[i].rights, ways[i].oflags) == 0) {
            snprintf(example, size, "path_open(%u, \"%s\")", fd, path);
            (*opened)++;
        }
    }
    (*tried) += 2;
    if (w_path_filestat_get(fd, 1, AT(path), (uint32_t)strlen(path), AT(scratch)) == 0) {
        snprintf(example, size, "path_filestat_get(%u, \"%s\")", fd, path);
        (*opened)++;
    }
    if (w_path_readlink(fd, AT(path), (uint32_t)strlen(path), AT(scratch), sizeof scratch,
                        AT(&result)) == 0) {
        snprintf(example, size, "path_readlink(%u, \"%s\")", fd, path);
        (*opened)++;
    }
}

static void paths(void) {
    char line[500], example[300], path[64];
    uint32_t tried, opened;

    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        tried = opened = 0;
        example[0] = '\0';
        for (uint32_t fd = 0; fd < NUMBERS; fd++) {
            if (fd < DENSE || known[fd]) {
                one_path(fd, outside[i], &opened, &tried, example, sizeof example);
            }
        }
        if (opened > 0) {
            snprintf(line, sizeof line, "\"%s\" is reachable in %u ways, such as %s", outside[i],
                     opened, example);
        } else {
            snprintf(line, sizeof line, "\"%s\" is out of reach (%u attempts)", outside[i], tried);
        }
        verdict(opened == 0, line);
    }

    tried = opened = 0;
    example[0] = '\0';
    for (uint32_t target = 0; target < 64; target++) {
        static const char *const forms[] = {"/proc/self/fd/%u", "proc/self/fd/%u", "/dev/fd/%u",
                                            "../proc/self/fd/%u"};

        for (size_t form = 0; form < sizeof forms / sizeof *forms; form++) {
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wformat-nonliteral"
            snprintf(path, sizeof path, forms[form], target);
#pragma clang diagnostic pop
            for (uint32_t fd = 0; fd < DENSE; fd++) {
                one_path(fd, path, &opened, &tried, example, sizeof example);
            }
        }
    }
    snprintf(line, sizeof line,
             "no descriptor opens again through /proc/self/fd or /dev/fd (%u attempts)%s%s", tried,
             opened > 0 ? ", but " : "", example);
    verdict(opened == 0, line);

    /* A length that says more than the text: a host in C may stop at the NUL, after checking the
     * rest. */
    tried = opened = 0;
    for (uint32_t fd = 0; fd < NUMBERS; fd++) {
        static const char nul[] = "a\0/../../etc/passwd", nul2[] = "/etc/passwd\0x";

        if (fd < DENSE || known[fd]) {
            tried += 2;
            opened +=
                w_path_open(fd, 1, AT(nul), sizeof nul - 1, 0, RIGHT_READ, 0, 0, AT(&result)) == 0;
            opened += w_path_open(fd, 1, AT(nul2), sizeof nul2 - 1, 0, RIGHT_READ, 0, 0,
                                  AT(&result)) == 0;
        }
    }
    snprintf(line, sizeof line, "paths with a NUL inside are refused (%u attempts)", tried);
    verdict(opened == 0, line);

    /* What the C library makes of it, through whatever preopened directory it finds. */
    static const char *const files[] = {"/etc/passwd", "/etc/hostname", "/proc/self/status",
                                        "../etc/passwd"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        FILE *file = fopen(files[i], "r");

        snprintf(line, sizeof line, "fopen(\"%s\")", files[i]);
        verdict(file == NULL, line);
        if (file != NULL) {
            fclose(file);
        }
    }
}

/* --- grants, used for more than their mode ---------------------------------------------------- */

static void refused(const struct grant *grant, const char *what, int32_t error) {
    char line[300];

    snprintf(line, sizeof line, "%s on \"%s\" (fd %u, mode %s%s) %s (errno %d)", what, grant->name,
             grant->fd, grant->read ? "r" : "", grant->write ? "w" : "",
             error == 0 ? "works" : "is refused", error);
    verdict(error != 0, line);
}

static int32_t write_one(uint32_t fd) {
    vector.buffer = AT(&byte);
    vector.length = 1;
    return w_fd_write(fd, AT(&vector), 1, AT(&result));
}

static int32_t read_one(uint32_t fd) {
    vector.buffer = AT(scratch);
    vector.length = 1;
    return w_fd_read(fd, AT(&vector), 1, AT(&result));
}

static void not_writable(const struct grant *grant) {
    refused(grant, "fd_write", write_one(grant->fd));
    vector.buffer = AT(&byte);
    vector.length = 1;
    refused(grant, "fd_pwrite", w_fd_pwrite(grant->fd, AT(&vector), 1, 0, AT(&result)));
    refused(grant, "fd_write of nothing", w_fd_write(grant->fd, AT(&vector), 0, AT(&result)));
    refused(grant, "fd_allocate", w_fd_allocate(grant->fd, 0, 1 << 20));
    refused(grant, "fd_filestat_set_size", w_fd_filestat_set_size(grant->fd, 0));
    refused(grant, "fd_filestat_set_times", w_fd_filestat_set_times(grant->fd, 1, 1, 5));
    refused(grant, "sock_send", w_sock_send(grant->fd, AT(&vector), 1, 0, AT(&result)));
}

static void not_readable(const struct grant *grant) {
    refused(grant, "fd_read", read_one(grant->fd));
    vector.buffer = AT(scratch);
    vector.length = 1;
    refused(grant, "fd_pread", w_fd_pread(grant->fd, AT(&vector), 1, 0, AT(&result)));
    refused(grant, "sock_recv",
            w_sock_recv(grant->fd, AT(&vector), 1, 0, AT(&result), AT(&result2)));
}

/* Rights only ever shrink: asking for all of them must not add one. */
static void raise_rights(uint32_t fd) {
    __wasi_fdstat_t before, after;
    char line[200];
    int32_t error;

    if (w_fd_fdstat_get(fd, AT(&before)) != 0) {
        return;
    }
    error = w_fd_fdstat_set_rights(fd, RIGHT_ALL, RIGHT_ALL);
    memset(&after, 0, sizeof after);
    bool held = w_fd_fdstat_get(fd, AT(&after)) == 0 &&
                (after.fs_rights_base & ~before.fs_rights_base) == 0 &&
                (after.fs_rights_inheriting & ~before.fs_rights_inheriting) == 0;
    snprintf(line, sizeof line, "asking for all rights adds none to fd %u (errno %d)", fd, error);
    verdict(held, line);
}

/* The grant's own path must not give more than the grant: only a pathlink opens at all. */
static void reopen(const struct grant *grant) {
    char path[72], line[300];
    uint64_t wanted = (grant->write ? 0 : RIGHT_WRITE) | (grant->read ? 0 : RIGHT_READ);
    uint32_t more = 0;

    if (wanted == 0) {
        return;
    }
    for (int absolute = 0; absolute < 2; absolute++) {
        snprintf(path, sizeof path, "%s%s", absolute ? "/" : "", grant->name);
        for (uint32_t fd = 0; fd < NUMBERS; fd++) {
            static const uint32_t oflags[] = {0, __WASI_OFLAGS_CREAT, __WASI_OFLAGS_TRUNC};

            if (!(fd < DENSE || known[fd]) || (!absolute && grant_of(fd) != NULL)) {
                continue;
            }
            for (size_t i = 0; i < sizeof oflags / sizeof *oflags; i++) {
                if (oflags[i] != 0 && grant->write) {
                    continue;
                }
                if (w_path_open(fd, 1, AT(path), (uint32_t)strlen(path), oflags[i], wanted, 0, 0,
                                AT(&result)) == 0) {
                    uint32_t opened = result;

                    more += (wanted & RIGHT_WRITE) != 0 && write_one(opened) == 0;
                    more += (wanted & RIGHT_READ) != 0 && read_one(opened) == 0;
                    (void)w_fd_close(opened);
                }
            }
        }
    }
    snprintf(line, sizeof line, "opening \"%s\" by its name gives no more than its mode",
             grant->name);
    verdict(more == 0, line);
}

static int32_t open_for_writing(uint32_t fd, const char *path) {
    return try_path(fd, path, RIGHT_READ | RIGHT_WRITE, 0);
}

/* The first regular file that a directory lists, or none. */
static bool first_file(uint32_t fd, char *name, size_t size) {
    static uint8_t buffer[16384];
    uint32_t used = 0;

    if (w_fd_readdir(fd, AT(buffer), sizeof buffer, 0, AT(&used)) != 0) {
        return false;
    }
    for (uint32_t at = 0; at + sizeof(__wasi_dirent_t) <= used;) {
        __wasi_dirent_t entry;

        memcpy(&entry, buffer + at, sizeof entry);
        at += sizeof entry;
        if (at + entry.d_namlen > used) {
            break;
        }
        if (entry.d_type == __WASI_FILETYPE_REGULAR_FILE && entry.d_namlen < size) {
            memcpy(name, buffer + at, entry.d_namlen);
            name[entry.d_namlen] = '\0';
            return true;
        }
        at += entry.d_namlen;
    }
    return false;
}

static void read_only_directory(const struct grant *grant) {
    uint32_t fd = grant->fd;
    char name[256];

    refused(grant, "path_create_directory", w_path_create_directory(fd, AT("ww-escape"), 9));
    refused(grant, "path_open to create",
            try_path(fd, "ww-escape", RIGHT_WRITE, __WASI_OFLAGS_CREAT));
    refused(grant, "path_symlink", w_path_symlink(AT("x"), 1, fd, AT("ww-escape"), 9));
    if (first_file(fd, name, sizeof name)) {
        uint32_t length = (uint32_t)strlen(name);

        refused(grant, "path_open of a file to write", open_for_writing(fd, name));
        refused(grant, "path_open of a file to truncate",
                try_path(fd, name, RIGHT_READ, __WASI_OFLAGS_TRUNC));
        refused(grant, "path_link", w_path_link(fd, 0, AT(name), length, fd, AT("ww-escape"), 9));
        refused(grant, "path_rename", w_path_rename(fd, AT(name), length, fd, AT("ww-escape"), 9));
        refused(grant, "path_unlink_file", w_path_unlink_file(fd, AT(name), length));
    }
}

/* A link that the cell makes itself must not lead it out. */
static void symlinks_out(const struct grant *grant) {
    static const char *const targets[] = {
        "/", "..", "../..", "/etc/passwd", "../../../../../../etc/passwd", "/proc/self"};
    static const char *const under[] = {"", "/", "/etc/passwd", "/.."};
    uint32_t fd = grant->fd, opened = 0;
    char path[64], line[200];

    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        if (w_path_symlink(AT(targets[i]), (uint32_t)strlen(targets[i]), fd, AT("ww-escape"), 9) !=
            0) {
            continue;
        }
        for (size_t k = 0; k < sizeof under / sizeof *under; k++) {
            snprintf(path, sizeof path, "ww-escape%s", under[k]);
            opened += try_path(fd, path, RIGHT_READ, 0) == 0;
            opened += try_path(fd, path, RIGHT_READ, __WASI_OFLAGS_DIRECTORY) == 0;
        }
        (void)w_path_unlink_file(fd, AT("ww-escape"), 9);
    }
    snprintf(line, sizeof line, "symbolic links made in \"%s\" lead nowhere outside", grant->name);
    verdict(opened == 0, line);
}

static void modes(void) {
    for (uint32_t i = 0; i < grant_count; i++) {
        const struct grant *grant = &grants[i];

        raise_rights(grant->fd);
        if (!grant->directory) {
            if (!grant->write) {
                not_writable(grant);
            }
            if (!grant->read) {
                not_readable(grant);
            }
            reopen(grant);
        } else if (grant->write) {
            symlinks_out(grant);
        } else {
            read_only_directory(grant);
        }
    }
    for (uint32_t fd = 0; fd < 3; fd++) {
        if (grant_of(fd) == NULL) {
            raise_rights(fd);
        }
    }
}

/* A read-only grant that is moved onto a writable one's number brings its own mode with it. Last:
 * it moves them. */
static void swap_modes(void) {
    for (uint32_t i = 0; i < grant_count; i++) {
        for (uint32_t k = 0; k < grant_count; k++) {
            struct grant *from = &grants[i], *onto = &grants[k];
            char line[300];

            if (from->directory || onto->directory || from->write || !onto->write || from->fd < 3 ||
                onto->fd < 3) {
                continue;
            }
            int32_t error = w_fd_renumber(from->fd, onto->fd);
            bool held = error != 0 || write_one(onto->fd) != 0;
            snprintf(line, sizeof line,
                     "\"%s\" (mode r) moved onto \"%s\" (mode w) is still not writable (errno %d)",
                     from->name, onto->name, error);
            verdict(held, line);
            return;
        }
    }
}

/* --- the rest --------------------------------------------------------------------------------- */

static void environment(void) {
    char line[300];
    uint32_t foreign = 0;

    for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
        if (strncmp(*entry, "WW_FDS=", 7) != 0 && strncmp(*entry, "WW_FD_", 6) != 0) {
            snprintf(line, sizeof line, "the environment holds %.60s", *entry);
            verdict(false, line);
            foreign++;
        } else if (strncmp(*entry, "WW_FD_", 6) == 0) {
            const char *value = strchr(*entry, '=');
            uint32_t fd = value != NULL ? (uint32_t)strtoul(value + 1, NULL, 10) : NUMBERS;

            if (grant_of(fd) == NULL) {
                snprintf(line, sizeof line,
                         "the environment names a number that is not in WW_FDS: %.60s", *entry);
                verdict(false, line);
                foreign++;
            }
        }
    }
    if (foreign == 0) {
        verdict(true, "the environment holds nothing but WW_FDS and WW_FD_*");
    }
}

/* Addresses outside this cell's memory: the host must refuse them, and never touch its own memory
 * there. */
static void memory(void) {
    uint32_t end = (uint32_t)__builtin_wasm_memory_size(0) * 65536u;
    struct {
        const char *what;
        ptr buffer;
        uint32_t length;
    } bad[] = {
        {"a buffer past the end of memory", 0xfffffff0u, 8},
        {"a buffer that begins inside and ends past the end", end - 8, 64},
        {"a buffer whose length wraps around", 4096, 0xfffffff0u},
        {"a buffer of 4 GiB", 0, 0xffffffffu},
    };
    uint32_t fds[2] = {1, 1};
    char line[200];

    /* Not a directory: the engine that serves those ends a cell that passes such an address. */
    for (uint32_t i = 0; i < grant_count && fds[1] == 1; i++) {
        if (!grants[i].directory) {
            fds[1] = grants[i].fd;
        }
    }

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bool held = true;

        for (size_t k = 0; k < 2; k++) {
            vector.buffer = bad[i].buffer;
            vector.length = bad[i].length;
            held = w_fd_write(fds[k], AT(&vector), 1, AT(&result)) != 0 && held;
            held = fds[k] < 3 || (w_fd_read(fds[k], AT(&vector), 1, AT(&result)) != 0 && held);
        }
        snprintf(line, sizeof line, "%s is refused", bad[i].what);
        verdict(held, line);
    }
    verdict(w_fd_write(1, end - 4, 1, AT(&result)) != 0,
            "a vector that ends past the end of memory is refused");
    verdict(w_fd_write(1, AT(&vector), 0xffffffffu, AT(&result)) != 0,
            "a list of 4294967295 vectors is refused");
    verdict(w_fd_fdstat_get(1, end - 4) != 0,
            "a result that would end past the end of memory is refused");
    if (fds[1] != 1) {
        verdict(w_path_open(fds[1], 0, end - 4, 64, 0, RIGHT_READ, 0, 0, AT(&result)) != 0,
                "a path that ends past the end of memory is refused");
    }
}

int main(void) {
    read_grants();
    environment();
    find_preopens();
    sweep();
    paths();
    modes();
    memory();
    swap_modes();
    printf("escape: %d held, %d broken\n", held_count, broken_count);
    return broken_count == 0 && fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
