/*
 * A native program that takes the cell's place in the jail and does what the test tells it to.
 *
 *   attacks CALL...              one call after the other; a line of JSON before and after each:
 *                                {"begin": CALL}
 *                                {"what": CALL, "ret": ..., "errno": ...}
 *
 * CALL is the name of a system call (or its number) and its arguments, between bars:
 *
 *   openat|3|'../secret|0x80000
 *
 *   'TEXT      a pointer to a text          #HEX    a pointer to bytes, which the call may change
 *   @          a pointer to 64 KiB of room  NUMBER  a number
 *   last       what the last call returned that did not fail
 *   saved      what it returned when `save` was called
 *
 * or one of the names in `own_calls`, for what takes more than one call and its arguments.
 *
 * A filter may end the process for a call: the line before it is written then, the one after is
 * not. Static, and free of any library but libc: the jail has no files to load.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ARGUMENTS 6
#define ROOM 65536

static char room[ROOM];
static long last_result, saved_result;

/* --- output ----------------------------------------------------------------------------------- */

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
    char text[8192];
    va_list args;

    va_start(args, format);
    int length = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (length < 0 || (size_t)length >= sizeof text || write(1, text, (size_t)length) != length) {
        _exit(99);
    }
}

/* What is between two bars is text of the tests' own, without quotes. */
static void begin(const char *call) {
    say("{\"begin\": \"%s\"}\n", call);
}

static void end(const char *call, long ret) {
    int error = ret < 0 && ret >= -4095 ? errno : 0;

    say("{\"what\": \"%s\", \"ret\": %ld, \"errno\": %d}\n", call, ret, error);
}

/* --- calls by name ---------------------------------------------------------------------------- */

#define NAMED(name) {#name, SYS_##name}
static const struct {
    const char *name;
    long number;
} names[] = {
    NAMED(add_key),
    NAMED(bind),
    NAMED(bpf),
    NAMED(capget),
    NAMED(capset),
    NAMED(chdir),
    NAMED(chroot),
    NAMED(clock_settime),
    NAMED(clone),
    NAMED(clone3),
    NAMED(close),
    NAMED(connect),
    NAMED(execve),
    NAMED(execveat),
    NAMED(faccessat),
    NAMED(fallocate),
    NAMED(fanotify_init),
    NAMED(fchdir),
    NAMED(fchmod),
    NAMED(fchmodat),
    NAMED(fchown),
    NAMED(fchownat),
    NAMED(fcntl),
    NAMED(finit_module),
    NAMED(flock),
    NAMED(fsconfig),
    NAMED(fsetxattr),
    NAMED(fsmount),
    NAMED(fsopen),
    NAMED(fspick),
    NAMED(ftruncate),
    NAMED(futex),
    NAMED(getpid),
    NAMED(getsockopt),
    NAMED(inotify_init1),
    NAMED(init_module),
    NAMED(io_setup),
    NAMED(io_uring_enter),
    NAMED(io_uring_register),
    NAMED(io_uring_setup),
    NAMED(ioctl),
    NAMED(ioprio_set),
    NAMED(kcmp),
    NAMED(kexec_load),
    NAMED(keyctl),
    NAMED(kill),
    NAMED(linkat),
    NAMED(listen),
    NAMED(madvise),
    NAMED(memfd_create),
    NAMED(mkdirat),
    NAMED(mknodat),
    NAMED(mlock),
    NAMED(mmap),
    NAMED(mount),
    NAMED(mount_setattr),
    NAMED(move_mount),
    NAMED(mprotect),
    NAMED(mq_open),
    NAMED(mremap),
    NAMED(msgget),
    NAMED(name_to_handle_at),
    NAMED(open_by_handle_at),
    NAMED(open_tree),
    NAMED(openat),
    NAMED(openat2),
    NAMED(perf_event_open),
    NAMED(personality),
    NAMED(pidfd_getfd),
    NAMED(pidfd_open),
    NAMED(pidfd_send_signal),
    NAMED(pkey_mprotect),
    NAMED(pivot_root),
    NAMED(prctl),
    NAMED(prlimit64),
    NAMED(ptrace),
    NAMED(pwrite64),
    NAMED(read),
    NAMED(readlinkat),
    NAMED(reboot),
    NAMED(remap_file_pages),
    NAMED(renameat2),
    NAMED(request_key),
    NAMED(rt_sigqueueinfo),
    NAMED(sched_setaffinity),
    NAMED(sched_setattr),
    NAMED(sched_setscheduler),
    NAMED(seccomp),
    NAMED(semget),
    NAMED(sendmmsg),
    NAMED(sendto),
    NAMED(setdomainname),
    NAMED(setfsuid),
    NAMED(setgid),
    NAMED(setgroups),
    NAMED(sethostname),
    NAMED(setns),
    NAMED(setpriority),
    NAMED(setresuid),
    NAMED(setsid),
    NAMED(settimeofday),
    NAMED(setuid),
    NAMED(setxattr),
    NAMED(shmget),
    NAMED(socket),
    NAMED(socketpair),
    NAMED(splice),
    NAMED(statx),
    NAMED(swapon),
    NAMED(symlinkat),
    NAMED(syslog),
    NAMED(tgkill),
    NAMED(truncate),
    NAMED(umount2),
    NAMED(unlinkat),
    NAMED(unshare),
    NAMED(userfaultfd),
    NAMED(utimensat),
    NAMED(vmsplice),
    NAMED(write),
#ifdef __x86_64__
    NAMED(fork),
    NAMED(iopl),
    NAMED(modify_ldt),
    NAMED(vfork),
#endif
};

static long number_of(const char *name) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i].name) == 0) {
            return names[i].number;
        }
    }
    char *rest;
    long number = strtol(name, &rest, 0);
    if (*name == '\0' || *rest != '\0') {
        fprintf(stderr, "attacks: no call %s\n", name);
        _exit(2);
    }
    return number;
}

static long argument(char *text) {
    if (*text == '\'') {
        return (long)(intptr_t)(text + 1);
    }
    if (*text == '@') {
        return (long)(intptr_t)room;
    }
    if (*text == '#') {
        size_t length = strlen(text + 1) / 2;
        unsigned char *bytes = calloc(1, length + 1);

        for (size_t i = 0; bytes != NULL && i < length; i++) {
            unsigned value;
            if (sscanf(text + 1 + 2 * i, "%2x", &value) != 1) {
                _exit(2);
            }
            bytes[i] = (unsigned char)value;
        }
        return (long)(intptr_t)bytes;
    }
    if (strcmp(text, "last") == 0) {
        return last_result;
    }
    if (strcmp(text, "saved") == 0) {
        return saved_result;
    }
    return *text == '-' ? strtol(text, NULL, 0) : (long)strtoul(text, NULL, 0);
}

/* --- what takes more than a call -------------------------------------------------------------- */

/* How many descriptors are open, whatever RLIMIT_NOFILE says now: up to the largest fs.nr_open. */
static long count_descriptors(long *args) {
    long count = 0;

    (void)args;
    for (int fd = 0; fd < 1 << 20; fd++) {
        count += fcntl(fd, F_GETFD) >= 0;
    }
    return count;
}

static long save(long *args) {
    (void)args;
    return saved_result = last_result;
}

/* SOCKET, FD: pass a descriptor on. */
static long send_descriptor(long *args) {
    char byte = 'x';
    struct iovec part = {&byte, 1};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int fd = (int)args[1];

    memset(&control, 0, sizeof control);
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    return sendmsg((int)args[0], &message, MSG_NOSIGNAL);
}

/* PID, whether to write: another process's memory, where a program's text usually is. */
static long other_memory(long *args) {
    char byte = 0;
    struct iovec local = {&byte, 1}, remote = {(void *)(uintptr_t)0x400000, 1};

    return syscall(args[1] != 0 ? SYS_process_vm_writev : SYS_process_vm_readv, args[0], &local, 1L,
                   &remote, 1L, 0L);
}

/* NUMBER: the same kernel through the gate of 32-bit programs, with its numbers. */
static long gate_32(long *args) {
#ifdef __x86_64__
    long result;

    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(args[0]), "b"(0L), "c"(0L), "d"(0L)
                     : "memory", "r8", "r9", "r10", "r11");
    if (result < 0 && result > -4096) {
        errno = (int)-result;
        return -1;
    }
    return result;
#else
    (void)args;
    errno = ENOSYS;
    return -1;
#endif
}

/* Whether the program in memory can be changed by way of /proc/self/mem; 1 if it was. */
static const volatile char constant[] = "unchanged";
static long change_through_mem(long *args) {
    (void)args;
    int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);

    if (fd < 0) {
        return -1;
    }
    long ret = pwrite(fd, "X", 1, (off_t)(intptr_t)constant);
    int error = errno;
    close(fd);
    errno = error;
    return ret < 0 ? ret : constant[0] == 'X';
}

/* The number of signals 1 to 64 that a process may be sent; each is sent to PID as kill(2) does.
 * Its own SIGKILL among them would end this: so 0, unless PID is another's. */
static long signals(long *args) {
    long sent = 0;
    int error = 0;

    for (int number = 0; number <= 64; number++) {
        if (kill((pid_t)args[0], number) == 0) {
            sent++;
        } else {
            error = errno;
        }
    }
    errno = error;
    return sent > 0 ? sent : -1;
}

/* Fork until it is refused, at most COUNT times; the children wait. */
static long fork_bomb(long *args) {
    for (long made = 0; made < args[0]; made++) {
        pid_t child = fork();

        if (child < 0) {
            return made;
        }
        if (child == 0) {
            setsid();
            for (;;) {
                pause();
            }
        }
    }
    return args[0];
}

/* MEBIBYTES: allocate and touch; what is returned is how many could be had. */
static long memory_hog(long *args) {
    for (long i = 0; i < args[0]; i++) {
        char *block =
            mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (block == MAP_FAILED) {
            return i;
        }
        memset(block, 1, 1 << 20);
    }
    return args[0];
}

/* DIRECTORY, COUNT: make empty files until it is refused, at most COUNT; how many. */
static long file_hog(long *args) {
    for (long i = 0; i < args[1]; i++) {
        char name[32];

        snprintf(name, sizeof name, "f%ld", i);
        int fd = openat((int)args[0], name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW, 0600);
        if (fd < 0) {
            return i;
        }
        close(fd);
    }
    return args[1];
}

/* FD, MEBIBYTES: write until it is refused; how many bytes. With SIGXFSZ the error is EFBIG. */
static long output_hog(long *args) {
    long written = 0;

    signal(SIGXFSZ, SIG_IGN);
    while (written < args[1] << 20) {
        ssize_t count = write((int)args[0], room, sizeof room);

        if (count < 0) {
            return written;
        }
        written += count;
    }
    return written;
}

/* The error of the call before, as a result: for those that count until one comes. */
static long error_was(long *args) {
    (void)args;
    return errno;
}

/* RESOURCE: whether its hard limit can be raised by 1. */
static long raise_limit(long *args) {
    struct rlimit limit;

    if (getrlimit((int)args[0], &limit) != 0) {
        return -1;
    }
    if (limit.rlim_max == RLIM_INFINITY) {
        return 1; /* there is nothing to raise, and so no limit */
    }
    limit.rlim_max += 1;
    return setrlimit((int)args[0], &limit);
}

static long hard_limit(long *args) {
    struct rlimit limit;

    return getrlimit((int)args[0], &limit) != 0 ? -1 : (long)limit.rlim_max;
}

/* End by a signal's default action, for which the kernel would write a core dump. */
static long abort_child(long *args) {
    (void)args;
    pid_t child = fork();
    int status = 0;

    if (child < 0) {
        return -1;
    }
    if (child == 0) {
        abort();
    }
    /* 128 is WCOREDUMP: whether one was written. */
    return waitpid(child, &status, 0) < 0 ? -1 : status;
}

/* RESULT of a call that returns a pointer to room: what was put there, as the first 8 bytes. */
static long peek(long *args) {
    long value;

    memcpy(&value, room + args[0], sizeof value);
    return value;
}

/* ADDRESS, VALUE: change the first 8 bytes of memory. */
static long poke(long *args) {
    *(volatile long *)(intptr_t)args[0] = args[1];
    return 0;
}

static const struct {
    const char *name;
    long (*call)(long *);
} own_calls[] = {
    {"abort-child", abort_child},
    {"change-through-mem", change_through_mem},
    {"count-descriptors", count_descriptors},
    {"error-was", error_was},
    {"file-hog", file_hog},
    {"fork-bomb", fork_bomb},
    {"gate-32", gate_32},
    {"hard-limit", hard_limit},
    {"memory-hog", memory_hog},
    {"other-memory", other_memory},
    {"output-hog", output_hog},
    {"peek", peek},
    {"poke", poke},
    {"raise-limit", raise_limit},
    {"save", save},
    {"send-descriptor", send_descriptor},
    {"signals", signals},
};

/* --- main ------------------------------------------------------------------------------------- */

static long perform(char *call, int *error) {
    char *parts[ARGUMENTS + 1] = {NULL};
    long args[ARGUMENTS] = {0};
    int count = 0;

    /* Not strtok: an argument may be an empty text. */
    for (char *rest = call; rest != NULL && count <= ARGUMENTS; count++) {
        parts[count] = rest;
        rest = strchr(rest, '|');
        if (rest != NULL) {
            *rest++ = '\0';
        }
    }
    for (int i = 1; i < count; i++) {
        args[i - 1] = argument(parts[i]);
    }
    for (size_t i = 0; i < sizeof own_calls / sizeof *own_calls; i++) {
        if (strcmp(parts[0], own_calls[i].name) == 0) {
            errno = *error;
            long ret = own_calls[i].call(args);
            *error = errno;
            return ret;
        }
    }
    long number = number_of(parts[0]);
    long ret = syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]);
    *error = errno;
    return ret;
}

int main(int argc, char **argv) {
    int error = 0;

    for (int i = 1; i < argc; i++) {
        char *whole = strdup(argv[i]);

        if (whole == NULL) {
            return 98;
        }
        begin(whole);
        long ret = perform(argv[i], &error);
        errno = error;
        end(whole, ret);
        if (ret >= 0) {
            last_result = ret;
        }
    }
    return 0;
}
