/*
 * A native program that takes the cell's place in the jail and says what it finds there.
 *
 *   probe report [SECTION...]    one JSON object on fd 1; without a section, all of them
 *   probe try ATTACK [ARG]       do one thing that the jail should refuse; one JSON line for each
 * call:
 *                                {"what": ..., "ret": ..., "errno": ...}
 *   probe list                   the names of the sections and attacks
 *   probe exit CODE | raise SIGNAL | sleep SECONDS | spin | flood BYTES | memory MIB | forks COUNT
 *                                ends, or uses something up, in a known way
 *
 * One attack a run, because a seccomp filter may end the process for it. Everything is written to
 * fd 1 with write(2), in pieces as it is found: what was printed before a kill counts. Static, and
 * on purpose free of any library but libc: the jail has no files to load.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <ifaddrs.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* --- output: JSON in pieces, straight to fd 1 ------------------------------------------------- */

static char out[1 << 16];
static size_t out_used;

static void out_flush(void) {
    for (size_t done = 0; done < out_used;) {
        ssize_t count = write(1, out + done, out_used - done);

        if (count < 0) {
            _exit(99);
        }
        done += (size_t)count;
    }
    out_used = 0;
}

static void put(const char *text, size_t length) {
    if (length > sizeof out - out_used) {
        out_flush();
    }
    if (length > sizeof out) {
        _exit(98);
    }
    memcpy(out + out_used, text, length);
    out_used += length;
}

__attribute__((format(printf, 1, 2))) static void putf(const char *format, ...) {
    char text[1024];
    va_list args;

    va_start(args, format);
    int length = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    put(text, length < 0 ? 0 : (size_t)length < sizeof text ? (size_t)length : sizeof text - 1);
}

static void put_string(const char *text) {
    put("\"", 1);
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;

        if (c == '"' || c == '\\') {
            putf("\\%c", c);
        } else if (c < 0x20 || c >= 0x7f) {
            /* Bytes that are not ASCII come out as Latin-1: JSON that always parses. */
            putf("\\u%04x", c);
        } else {
            put((const char *)text, 1);
        }
    }
    put("\"", 1);
}

/* `"key": ` with the comma that belongs before it. */
static bool first_key = true;
static void key(const char *name) {
    put(first_key ? "{\"" : ",\n \"", first_key ? 2 : 4);
    first_key = false;
    put(name, strlen(name));
    put("\": ", 3);
}

static void key_number(const char *name, long long value) {
    key(name);
    putf("%lld", value);
}

static void key_string(const char *name, const char *value) {
    key(name);
    if (value == NULL) {
        put("null", 4);
    } else {
        put_string(value);
    }
}

/* A small file of /proc, or null: without /proc there is nothing to read. */
static void key_file(const char *name, const char *path) {
    char text[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t count = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

    if (fd >= 0) {
        close(fd);
    }
    if (count >= 0) {
        text[count] = '\0';
        while (count > 0 && text[count - 1] == '\n') {
            text[--count] = '\0';
        }
    }
    key_string(name, count < 0 ? NULL : text);
}

static void put_list_of_entries(const char *path) {
    DIR *directory = opendir(path);
    bool first = true;

    if (directory == NULL) {
        put("null", 4);
        return;
    }
    put("[", 1);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            put(", ", first ? 0 : 2);
            first = false;
            put_string(entry->d_name);
        }
    }
    put("]", 1);
    closedir(directory);
}

/* --- report ----------------------------------------------------------------------------------- */

static void report_process(void) {
    char name[17] = "";
    mode_t mask = umask(0);
    char cwd[4096];
    int death = -1;

    umask(mask);
    key_number("pid", getpid());
    key_number("ppid", getppid());
    key_number("sid", getsid(0));
    key_number("pgid", getpgid(0));
    key_number("umask", mask);
    key_string("cwd", getcwd(cwd, sizeof cwd));
    prctl(PR_GET_NAME, name);
    key_string("name", name);
    key_number("pdeathsig", prctl(PR_GET_PDEATHSIG, &death) == 0 ? death : -1);
    key_number("dumpable", prctl(PR_GET_DUMPABLE));
    key_number("child_subreaper", prctl(PR_GET_CHILD_SUBREAPER, &death) == 0 ? death : -1);
    key_number("tsc", prctl(PR_GET_TSC, &death) == 0 ? death : -1);
    errno = 0;
    key_number("nice", getpriority(PRIO_PROCESS, 0));
    int tty = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
    key("controlling_terminal");
    putf("%s", tty >= 0 ? "true" : "false");
    if (tty >= 0) {
        close(tty);
    }
}

static void report_ids(void) {
    uid_t uid[3];
    gid_t gid[3], groups[256];
    int count;

    if (getresuid(&uid[0], &uid[1], &uid[2]) == 0) {
        key("uids");
        putf("[%u, %u, %u]", uid[0], uid[1], uid[2]);
    }
    if (getresgid(&gid[0], &gid[1], &gid[2]) == 0) {
        key("gids");
        putf("[%u, %u, %u]", gid[0], gid[1], gid[2]);
    }
    count = getgroups(256, groups);
    key("groups");
    put("[", 1);
    for (int i = 0; i < count; i++) {
        putf("%s%u", i > 0 ? ", " : "", groups[i]);
    }
    put("]", 1);
}

static void put_mask(const char *name, uint64_t mask) {
    key(name);
    /* A string: 64 bits do not fit into every reader's numbers. */
    putf("\"%016llx\"", (unsigned long long)mask);
}

static void report_caps(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    uint64_t bounding = 0, ambient = 0;

    memset(data, 0, sizeof data);
    if (syscall(SYS_capget, &header, data) == 0) {
        put_mask("cap_effective", data[0].effective | (uint64_t)data[1].effective << 32);
        put_mask("cap_permitted", data[0].permitted | (uint64_t)data[1].permitted << 32);
        put_mask("cap_inheritable", data[0].inheritable | (uint64_t)data[1].inheritable << 32);
    }
    for (unsigned cap = 0; cap < 64; cap++) {
        if (prctl(PR_CAPBSET_READ, cap) == 1) {
            bounding |= UINT64_C(1) << cap;
        }
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) == 1) {
            ambient |= UINT64_C(1) << cap;
        }
    }
    put_mask("cap_bounding", bounding);
    put_mask("cap_ambient", ambient);
    key_number("securebits", prctl(PR_GET_SECUREBITS));
    key_number("no_new_privs", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    key_number("seccomp", prctl(PR_GET_SECCOMP));
}

static void report_host(void) {
    struct utsname name;
    struct timespec boot = {0, 0}, monotonic = {0, 0};

    if (uname(&name) == 0) {
        key_string("hostname", name.nodename);
        key_string("domainname", name.domainname);
        key_string("kernel", name.release);
    }
    clock_gettime(CLOCK_BOOTTIME, &boot);
    clock_gettime(CLOCK_MONOTONIC, &monotonic);
    key_number("boottime", boot.tv_sec);
    key_number("monotonic", monotonic.tv_sec);
}

static void report_root(void) {
    struct statvfs info;

    key("root");
    put_list_of_entries("/");
    key("root_mount");
    if (statvfs("/", &info) == 0) {
        putf("{\"rdonly\": %s, \"nosuid\": %s, \"nodev\": %s, \"noexec\": %s, \"blocks\": %llu, "
             "\"block_size\": %lu, "
             "\"files\": %llu}",
             info.f_flag & ST_RDONLY ? "true" : "false", info.f_flag & ST_NOSUID ? "true" : "false",
             info.f_flag & ST_NODEV ? "true" : "false", info.f_flag & ST_NOEXEC ? "true" : "false",
             (unsigned long long)info.f_blocks, (unsigned long)info.f_frsize,
             (unsigned long long)info.f_files);
    } else {
        put("null", 4);
    }
    key("links");
    put("{", 1);
    DIR *directory = opendir("/");
    bool first = true;
    for (struct dirent *entry; directory != NULL && (entry = readdir(directory)) != NULL;) {
        char target[4096];
        ssize_t length = readlinkat(dirfd(directory), entry->d_name, target, sizeof target - 1);

        if (length >= 0) {
            target[length] = '\0';
            put(", ", first ? 0 : 2);
            first = false;
            put_string(entry->d_name);
            put(": ", 2);
            put_string(target);
        }
    }
    if (directory != NULL) {
        closedir(directory);
    }
    put("}", 1);
}

static void report_fds(void) {
    bool first = true;

    key("fds");
    put("{", 1);
    /* Every number, and not /proc/self/fd: that may be absent, and a listing opens one itself. */
    for (int fd = 0; fd < 65536; fd++) {
        int flags = fcntl(fd, F_GETFD);
        struct stat info;

        if (flags < 0) {
            continue;
        }
        memset(&info, 0, sizeof info);
        int known = fstat(fd, &info);
        putf("%s\"%d\": {\"cloexec\": %s, \"flags\": %d, \"mode\": %u, \"device\": %llu, "
             "\"inode\": %llu, \"size\": %lld}",
             first ? "" : ",\n  ", fd, flags & FD_CLOEXEC ? "true" : "false", fcntl(fd, F_GETFL),
             known == 0 ? info.st_mode : 0, (unsigned long long)info.st_dev,
             (unsigned long long)info.st_ino, (long long)info.st_size);
        first = false;
    }
    put("}", 1);
}

static void report_network(void) {
    struct if_nameindex *list = if_nameindex();
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool first = true;

    key("interfaces");
    if (list == NULL) {
        put("null", 4);
    } else {
        put("{", 1);
        for (struct if_nameindex *one = list; one->if_index != 0; one++) {
            struct ifreq request;

            memset(&request, 0, sizeof request);
            snprintf(request.ifr_name, sizeof request.ifr_name, "%s", one->if_name);
            int error = fd < 0 ? -1 : ioctl(fd, SIOCGIFFLAGS, &request);
            put(", ", first ? 0 : 2);
            first = false;
            put_string(one->if_name);
            putf(": {\"index\": %u, \"flags\": %d, \"up\": %s}", one->if_index,
                 error == 0 ? (unsigned short)request.ifr_flags : -1,
                 error == 0 && (request.ifr_flags & IFF_UP) ? "true" : "false");
        }
        put("}", 1);
        if_freenameindex(list);
    }
    if (fd >= 0) {
        close(fd);
    }
}

static void report_limits(void) {
    static const struct {
        const char *name;
        int resource;
    } limits[] = {
        {"AS", RLIMIT_AS},           {"CORE", RLIMIT_CORE},
        {"CPU", RLIMIT_CPU},         {"DATA", RLIMIT_DATA},
        {"FSIZE", RLIMIT_FSIZE},     {"LOCKS", RLIMIT_LOCKS},
        {"MEMLOCK", RLIMIT_MEMLOCK}, {"MSGQUEUE", RLIMIT_MSGQUEUE},
        {"NICE", RLIMIT_NICE},       {"NOFILE", RLIMIT_NOFILE},
        {"NPROC", RLIMIT_NPROC},     {"RSS", RLIMIT_RSS},
        {"RTPRIO", RLIMIT_RTPRIO},   {"SIGPENDING", RLIMIT_SIGPENDING},
        {"STACK", RLIMIT_STACK},
    };
    bool first = true;

    key("rlimits");
    put("{", 1);
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit limit;

        if (getrlimit(limits[i].resource, &limit) == 0) {
            /* -1 is no limit, as in Python's resource module. */
            putf("%s\"%s\": [%lld, %lld]", first ? "" : ", ", limits[i].name,
                 (long long)limit.rlim_cur, (long long)limit.rlim_max);
            first = false;
        }
    }
    put("}", 1);
}

static void report_signals(void) {
    sigset_t blocked;
    bool first = true;

    key("signals_blocked");
    put("[", 1);
    if (sigprocmask(SIG_BLOCK, NULL, &blocked) == 0) {
        for (int number = 1; number < NSIG; number++) {
            if (sigismember(&blocked, number) == 1) {
                putf("%s%d", first ? "" : ", ", number);
                first = false;
            }
        }
    }
    put("]", 1);
    key("signals_ignored");
    put("[", 1);
    first = true;
    for (int number = 1; number < NSIG; number++) {
        struct sigaction action;

        if (sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN) {
            putf("%s%d", first ? "" : ", ", number);
            first = false;
        }
    }
    put("]", 1);
}

static void report_environ(void) {
    bool first = true;

    key("environ");
    put("[", 1);
    for (char **entry = environ; *entry != NULL; entry++) {
        put(", ", first ? 0 : 2);
        first = false;
        put_string(*entry);
    }
    put("]", 1);
}

static void report_proc(void) {
    static const char *const spaces[] = {"cgroup", "ipc",  "mnt",  "net",
                                         "pid",    "time", "user", "uts"};
    bool first = true;
    struct statvfs info;
    char path[64], target[64];

    key("proc");
    put_list_of_entries("/proc");
    key("proc_mount");
    if (statvfs("/proc/.", &info) == 0) {
        putf("{\"rdonly\": %s, \"nosuid\": %s, \"nodev\": %s, \"noexec\": %s}",
             info.f_flag & ST_RDONLY ? "true" : "false", info.f_flag & ST_NOSUID ? "true" : "false",
             info.f_flag & ST_NODEV ? "true" : "false", info.f_flag & ST_NOEXEC ? "true" : "false");
    } else {
        put("null", 4);
    }
    key("namespaces");
    put("{", 1);
    for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++) {
        snprintf(path, sizeof path, "/proc/self/ns/%s", spaces[i]);
        ssize_t length = readlink(path, target, sizeof target - 1);

        if (length > 0) {
            target[length] = '\0';
            putf("%s\"%s\": ", first ? "" : ", ", spaces[i]);
            put_string(target);
            first = false;
        }
    }
    put("}", 1);
    key_file("oom_score_adj", "/proc/self/oom_score_adj");
    key_file("status", "/proc/self/status");
    key_file("mountinfo", "/proc/self/mountinfo");
    key_file("uid_map", "/proc/self/uid_map");
    key_file("gid_map", "/proc/self/gid_map");
    key_file("setgroups", "/proc/self/setgroups");
    key_file("cgroup", "/proc/self/cgroup");
    DIR *tasks = opendir("/proc/self/task");
    int threads = 0;
    for (struct dirent *entry; tasks != NULL && (entry = readdir(tasks)) != NULL;) {
        threads += entry->d_name[0] != '.';
    }
    key_number("threads", tasks == NULL ? -1 : threads);
    if (tasks != NULL) {
        closedir(tasks);
    }
}

static void report_keyring(void) {
    char text[512] = "";
    long id = syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0);
    long length = id < 0 ? -1 : syscall(SYS_keyctl, KEYCTL_DESCRIBE, id, text, sizeof text - 1);

    key_number("session_keyring", id);
    key_string("session_keyring_description", length < 0 ? NULL : text);
}

static void report_landlock(void) {
    key_number("landlock_abi",
               syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION));
}

static const struct {
    const char *name;
    void (*report)(void);
} sections[] = {
    {"process", report_process},   {"ids", report_ids},       {"caps", report_caps},
    {"host", report_host},         {"root", report_root},     {"fds", report_fds},
    {"network", report_network},   {"limits", report_limits}, {"signals", report_signals},
    {"environ", report_environ},   {"proc", report_proc},     {"keyring", report_keyring},
    {"landlock", report_landlock},
};
#define SECTIONS (sizeof sections / sizeof *sections)

static int report(int count, char **names) {
    for (int i = 0; i < count; i++) {
        bool known = false;

        for (size_t k = 0; k < SECTIONS; k++) {
            known = known || strcmp(names[i], sections[k].name) == 0;
        }
        if (!known) {
            fprintf(stderr, "probe: no section %s\n", names[i]);
            return 2;
        }
    }
    for (size_t k = 0; k < SECTIONS; k++) {
        bool wanted = count == 0;

        for (int i = 0; i < count; i++) {
            wanted = wanted || strcmp(names[i], sections[k].name) == 0;
        }
        if (wanted) {
            sections[k].report();
            out_flush();
        }
    }
    put("}\n", 2);
    out_flush();
    return 0;
}

/* --- attacks ---------------------------------------------------------------------------------- */

/* One line for one call: errno is read before anything else can change it. */
static void result(const char *what, long ret) {
    int error = ret < 0 ? errno : 0;

    put("{\"what\": ", 9);
    put_string(what);
    putf(", \"ret\": %ld, \"errno\": %d}\n", ret, error);
    out_flush();
}

static void resultf(long ret, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void resultf(long ret, const char *format, ...) {
    int error = errno;
    char what[256];
    va_list args;

    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    errno = error;
    result(what, ret);
}

static long opened(int fd) {
    int error = errno;

    if (fd >= 0) {
        close(fd);
    }
    errno = error;
    return fd;
}

static bool is_open(int fd) {
    return fcntl(fd, F_GETFD) >= 0;
}

static void try_write_root(const char *arg) {
    static const char *const places[] = {"/", "/tmp/", "/proc/", "/dev/", "./"};
    char path[64];

    (void)arg;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(path, sizeof path, "%sprobe-directory", places[i]);
        resultf(mkdir(path, 0700), "mkdir %s", path);
        snprintf(path, sizeof path, "%sprobe-file", places[i]);
        resultf(opened(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600)), "create %s", path);
        snprintf(path, sizeof path, "%sprobe-link", places[i]);
        resultf(symlink("/etc/passwd", path), "symlink %s", path);
    }
    resultf(opened(open("/", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600)), "O_TMPFILE /");
    resultf(chmod("/", 0777), "chmod /");
    resultf(rename("/probe-a", "/probe-b"), "rename in /");
}

static void try_read_host(const char *arg) {
    static const char *const paths[] = {"/etc/passwd",
                                        "/etc/shadow",
                                        "/root",
                                        "/home",
                                        "/proc/1/environ",
                                        "/proc/1/root",
                                        "/proc/self/exe",
                                        "/proc/self/mem",
                                        "/proc/sys/kernel/core_pattern",
                                        "/proc/sysrq-trigger",
                                        "/proc/kcore",
                                        "/proc/kmsg",
                                        "/sys",
                                        "/sys/fs/cgroup",
                                        "/dev",
                                        "/dev/mem",
                                        "/dev/kmsg",
                                        "/dev/null",
                                        "/tmp",
                                        "/run",
                                        "/var",
                                        "/usr",
                                        "/bin/sh",
                                        "/lib",
                                        "..",
                                        "../..",
                                        "../../../../../../etc/passwd"};

    (void)arg;
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct stat info;

        resultf(stat(paths[i], &info), "stat %s", paths[i]);
        resultf(opened(open(paths[i], O_RDONLY | O_CLOEXEC | O_NONBLOCK)), "open %s", paths[i]);
    }
}

static void try_mount(const char *arg) {
    (void)arg;
    result("mount tmpfs /", mount("tmpfs", "/", "tmpfs", 0, NULL));
    result("mount tmpfs .", mount("tmpfs", ".", "tmpfs", 0, NULL));
    result("mount proc /proc", mount("proc", "/proc", "proc", 0, NULL));
    result("bind / .", mount("/", ".", NULL, MS_BIND | MS_REC, NULL));
    result("remount / rw", mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL));
    result("make / shared", mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL));
    result("umount /", umount2("/", MNT_DETACH));
    result("umount /proc", umount2("/proc", MNT_DETACH));
    result("pivot_root", syscall(SYS_pivot_root, ".", "."));
    result("open_tree /", opened((int)syscall(SYS_open_tree, AT_FDCWD, "/", 1)));
    result("fsopen tmpfs", opened((int)syscall(SYS_fsopen, "tmpfs", 0)));
    result("fspick /", opened((int)syscall(SYS_fspick, AT_FDCWD, "/", 0)));
}

static void try_unshare(const char *arg) {
    static const struct {
        const char *name;
        int flag;
    } spaces[] = {{"user", CLONE_NEWUSER},
                  {"mount", CLONE_NEWNS},
                  {"net", CLONE_NEWNET},
                  {"pid", CLONE_NEWPID},
                  {"ipc", CLONE_NEWIPC},
                  {"uts", CLONE_NEWUTS},
                  {"cgroup", CLONE_NEWCGROUP},
                  {"time", 0x00000080},
                  {"user and mount", CLONE_NEWUSER | CLONE_NEWNS}};

    for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++) {
        if (arg == NULL || strcmp(arg, spaces[i].name) == 0) {
            resultf(unshare(spaces[i].flag), "unshare %s", spaces[i].name);
        }
    }
}

static void try_setns(const char *arg) {
    (void)arg;
    for (int pid = 1; pid < 3; pid++) {
        int fd = (int)syscall(SYS_pidfd_open, pid, 0);

        resultf(fd, "pidfd_open %d", pid);
        if (fd >= 0) {
            resultf(setns(fd, CLONE_NEWNS | CLONE_NEWUSER), "setns to pid %d", pid);
            resultf(syscall(SYS_pidfd_getfd, fd, 0, 0), "pidfd_getfd from pid %d", pid);
            close(fd);
        }
    }
    result("open /proc/1/ns/mnt", opened(open("/proc/1/ns/mnt", O_RDONLY | O_CLOEXEC)));
}

static void try_setuid(const char *arg) {
    gid_t group = 0;

    (void)arg;
    result("setuid 0", setuid(0));
    result("setgid 0", setgid(0));
    result("setresuid 0", setresuid(0, 0, 0));
    result("setresgid 0", setresgid(0, 0, 0));
    result("setgroups 0", setgroups(1, &group));
    /* It reports no error: a second call with an id that is none tells what the first one did. */
    syscall(SYS_setfsuid, 0);
    result("setfsuid 0", syscall(SYS_setfsuid, -1) == 0 ? 0 : (errno = EPERM, -1L));
}

static void try_capabilities(const char *arg) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];

    (void)arg;
    memset(data, 0xff, sizeof data);
    result("capset all", syscall(SYS_capset, &header, data));
    result("raise ambient", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0));
    result("clear securebits", prctl(PR_SET_SECUREBITS, 0));
    result("set KEEPCAPS", prctl(PR_SET_KEEPCAPS, 1));
    result("clear no_new_privs", prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
    result("set dumpable", prctl(PR_SET_DUMPABLE, 1));
    result("clear pdeathsig", prctl(PR_SET_PDEATHSIG, 0));
}

static void try_chroot(const char *arg) {
    (void)arg;
    result("chroot .", chroot("."));
    result("chroot /", chroot("/"));
    result("chdir ..", chdir(".."));
    for (int fd = 0; fd < 65536; fd++) {
        if (is_open(fd)) {
            struct stat info;

            if (fstat(fd, &info) == 0 && S_ISDIR(info.st_mode)) {
                resultf(fchdir(fd), "fchdir %d", fd);
            }
        }
    }
}

static void try_ptrace(const char *arg) {
    char byte = 0;
    struct iovec local = {&byte, 1}, remote = {(void *)(uintptr_t)0x400000, 1};

    (void)arg;
    for (pid_t pid = 1; pid < 3; pid++) {
        if (pid != getpid()) {
            resultf(ptrace(PTRACE_SEIZE, pid, NULL, NULL), "ptrace seize %d", pid);
        }
        resultf(process_vm_readv(pid, &local, 1, &remote, 1, 0), "process_vm_readv %d", pid);
        resultf(process_vm_writev(pid, &local, 1, &remote, 1, 0), "process_vm_writev %d", pid);
    }
    result("ptrace traceme", ptrace(PTRACE_TRACEME, 0, NULL, NULL));
    result("kcmp", syscall(SYS_kcmp, 1, getpid(), 0, 0, 0));
}

/* kill PID: signal 0 only; whether a process outside can be addressed at all is the question. */
static void try_kill(const char *arg) {
    pid_t pid = arg != NULL ? (pid_t)atoi(arg) : getppid();

    resultf(kill(pid, 0), "kill %d", (int)pid);
    resultf(syscall(SYS_tgkill, pid, pid, 0), "tgkill %d", (int)pid);
    resultf(opened((int)syscall(SYS_pidfd_open, pid, 0)), "pidfd_open %d", (int)pid);
}

static void one_connect(const char *what, int family, int type, const void *address,
                        socklen_t length) {
    int fd = socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    resultf(fd, "socket for %s", what);
    if (fd >= 0) {
        resultf(connect(fd, address, length), "connect %s", what);
        close(fd);
    }
}

/* connect PORT */
static void try_connect(const char *arg) {
    struct sockaddr_in inet;
    struct sockaddr_in6 inet6;
    uint16_t port = htons((uint16_t)(arg != NULL ? atoi(arg) : 80));

    memset(&inet, 0, sizeof inet);
    inet.sin_family = AF_INET;
    inet.sin_port = port;
    inet.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    one_connect("tcp 127.0.0.1", AF_INET, SOCK_STREAM, &inet, sizeof inet);
    one_connect("udp 127.0.0.1", AF_INET, SOCK_DGRAM, &inet, sizeof inet);
    memset(&inet6, 0, sizeof inet6);
    inet6.sin6_family = AF_INET6;
    inet6.sin6_port = port;
    inet6.sin6_addr = in6addr_loopback;
    one_connect("tcp ::1", AF_INET6, SOCK_STREAM, &inet6, sizeof inet6);
}

/* connect-abstract NAME */
static void try_connect_abstract(const char *arg) {
    struct sockaddr_un address;
    const char *name = arg != NULL ? arg : "ww-probe";
    size_t length = strlen(name);

    if (length > sizeof address.sun_path - 1) {
        length = sizeof address.sun_path - 1;
    }
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path + 1, name, length);
    one_connect("abstract socket", AF_UNIX, SOCK_STREAM, &address,
                (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length));
}

static void try_sockets(const char *arg) {
    static const struct {
        const char *name;
        int family, type, protocol;
    } kinds[] = {{"inet stream", AF_INET, SOCK_STREAM, 0},   {"inet raw", AF_INET, SOCK_RAW, 1},
                 {"inet6 stream", AF_INET6, SOCK_STREAM, 0}, {"unix", AF_UNIX, SOCK_STREAM, 0},
                 {"netlink", AF_NETLINK, SOCK_RAW, 0},       {"packet", AF_PACKET, SOCK_RAW, 0},
                 {"vsock", AF_VSOCK, SOCK_STREAM, 0},        {"alg", AF_ALG, SOCK_SEQPACKET, 0}};
    int pair[2];

    (void)arg;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        resultf(opened(socket(kinds[i].family, kinds[i].type | SOCK_CLOEXEC, kinds[i].protocol)),
                "socket %s", kinds[i].name);
    }
    result("socketpair", socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
}

static void try_open_by_handle(const char *arg) {
    union {
        struct file_handle handle;
        char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } file;
    int mount_id = 0;

    (void)arg;
    for (int fd = 0; fd < 65536; fd++) {
        if (!is_open(fd)) {
            continue;
        }
        memset(&file, 0, sizeof file);
        file.handle.handle_bytes = MAX_HANDLE_SZ;
        long ret = name_to_handle_at(fd, "", &file.handle, &mount_id, AT_EMPTY_PATH);
        resultf(ret, "name_to_handle_at %d", fd);
        if (ret != 0) {
            /* The root of an ext4 or xfs: inode 2, guessed, as the known attack does. */
            memset(&file, 0, sizeof file);
            file.handle.handle_bytes = 8;
            file.handle.handle_type = 1;
            file.room[sizeof(struct file_handle)] = 2;
        }
        resultf(opened(open_by_handle_at(fd, &file.handle, O_RDONLY | O_CLOEXEC)),
                "open_by_handle_at %d", fd);
    }
}

static void try_mknod(const char *arg) {
    (void)arg;
    result("mknod null", mknod("/probe-null", S_IFCHR | 0666, (dev_t)0x103));
    result("mknod fifo", mknod("/probe-fifo", S_IFIFO | 0666, 0));
    result("mknod disk", mknod("/probe-disk", S_IFBLK | 0666, (dev_t)0x800));
}

static void try_sethostname(const char *arg) {
    (void)arg;
    result("sethostname", sethostname("probe", 5));
    result("setdomainname", setdomainname("probe", 5));
}

static void try_reopen(const char *arg) {
    int count = 0;
    static const int flags[] = {O_RDONLY, O_WRONLY, O_RDWR, O_WRONLY | O_TRUNC};

    (void)arg;
    for (int fd = 0; fd < 65536; fd++) {
        char path[64];

        if (!is_open(fd)) {
            continue;
        }
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
            resultf(opened(open(path, flags[i] | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)),
                    "open %s flags %d", path, flags[i]);
        }
        resultf(opened(openat(fd, "", O_PATH | O_CLOEXEC)), "openat %d with an empty path", fd);
        count++;
    }
    resultf(count, "descriptors tried");
}

static void try_openat(const char *arg) {
    static const char *const paths[] = {
        "..",          "../..", "../../etc/passwd", "../../../../../../../../etc/passwd",
        "/etc/passwd", "."};

    (void)arg;
    for (int fd = 0; fd < 65536; fd++) {
        if (!is_open(fd)) {
            continue;
        }
        for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
            resultf(opened(openat(fd, paths[i], O_RDONLY | O_CLOEXEC | O_NONBLOCK)), "openat %d %s",
                    fd, paths[i]);
        }
    }
}

static void try_priority(const char *arg) {
    struct sched_param param = {.sched_priority = 1};

    (void)arg;
    result("setpriority -20", setpriority(PRIO_PROCESS, 0, -20));
    result("setpriority of the parent", setpriority(PRIO_PROCESS, (id_t)getppid(), 5));
    result("sched_setscheduler fifo", syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &param));
    result("ioprio_set realtime", syscall(SYS_ioprio_set, 1, 0, 1 << 13));
}

static void try_rlimits(const char *arg) {
    static const struct {
        const char *name;
        int resource;
    } limits[] = {{"CORE", RLIMIT_CORE},   {"NOFILE", RLIMIT_NOFILE},   {"NPROC", RLIMIT_NPROC},
                  {"FSIZE", RLIMIT_FSIZE}, {"MEMLOCK", RLIMIT_MEMLOCK}, {"CPU", RLIMIT_CPU}};

    (void)arg;
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit limit;

        if (getrlimit(limits[i].resource, &limit) != 0) {
            continue;
        }
        if (limit.rlim_max == RLIM_INFINITY) {
            resultf(0, "%s is not limited", limits[i].name);
            continue;
        }
        limit.rlim_max += 1;
        limit.rlim_cur = limit.rlim_max;
        resultf(setrlimit(limits[i].resource, &limit), "raise %s", limits[i].name);
    }
}

static void try_keyctl(const char *arg) {
    static const int rings[] = {KEY_SPEC_USER_KEYRING, KEY_SPEC_USER_SESSION_KEYRING,
                                KEY_SPEC_SESSION_KEYRING};

    for (size_t i = 0; i < sizeof rings / sizeof *rings; i++) {
        resultf(
            syscall(SYS_keyctl, KEYCTL_SEARCH, rings[i], "user", arg != NULL ? arg : "ww-probe", 0),
            "keyctl search %d", rings[i]);
    }
    result("add_key", syscall(SYS_add_key, "user", "ww-probe-new", "x", 1, KEY_SPEC_USER_KEYRING));
    result("request_key",
           syscall(SYS_request_key, "user", arg != NULL ? arg : "ww-probe", NULL, 0));
}

static void try_ioctl(const char *arg) {
    char byte = 'x';
    char linux_call[2] = {2, 0};

    (void)arg;
    for (int fd = 0; fd < 65536; fd++) {
        if (is_open(fd)) {
            resultf(ioctl(fd, TIOCSTI, &byte), "TIOCSTI %d", fd);
            /* The kernel looks at the low 32 bits of the request; a filter that compares 64 lets
             * this one by. */
            resultf(syscall(SYS_ioctl, (long)fd, (1L << 32) | TIOCSTI, &byte),
                    "TIOCSTI with a high bit %d", fd);
            resultf(ioctl(fd, TIOCLINUX, linux_call), "TIOCLINUX %d", fd);
            resultf(ioctl(fd, TIOCSCTTY, 0), "TIOCSCTTY %d", fd);
        }
    }
}

/* What runs says so itself, in a line of the same form: a call that works does not come back. */
#define RAN(what) "{\"what\": \"" what "\", \"ret\": 0, \"errno\": 0}"

static void try_exec(const char *arg) {
    static const char script[] = "#!/bin/sh\necho '" RAN("fexecve memfd") "'\n";
    char *shell[] = {(char *)"sh", (char *)"-c", (char *)"echo '" RAN("execve /bin/sh") "'", NULL};
    char *self[] = {(char *)"probe", (char *)"ran", NULL};
    char *env[] = {NULL};

    if (arg == NULL || strcmp(arg, "shell") == 0) {
        result("execve /bin/sh", execve("/bin/sh", shell, env));
    }
    if (arg == NULL || strcmp(arg, "self") == 0) {
        result("execve /proc/self/exe", execve("/proc/self/exe", self, env));
    }
    int fd = memfd_create("probe", 0);
    result("memfd_create", fd);
    if (fd >= 0) {
        (void)!write(fd, script, sizeof script - 1);
        result("fexecve memfd", fexecve(fd, self, env));
        close(fd);
    }
}

static void try_fork(const char *arg) {
    (void)arg;
    pid_t child = fork();

    if (child == 0) {
        _exit(0);
    }
    result("fork", child);
    if (child > 0) {
        waitpid(child, NULL, 0);
    }
    child = vfork();
    if (child == 0) {
        _exit(0);
    }
    result("vfork", child);
}

static void try_mmap_exec(const char *arg) {
    (void)arg;
    void *page =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    result("mmap rwx", page == MAP_FAILED ? -1 : 0);
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    result("mmap rw", page == MAP_FAILED ? -1 : 0);
    if (page != MAP_FAILED) {
        result("mprotect rx", mprotect(page, 4096, PROT_READ | PROT_EXEC));
        result("pkey_mprotect rx",
               syscall(SYS_pkey_mprotect, page, 4096, PROT_READ | PROT_EXEC, -1));
    }
    result("personality READ_IMPLIES_EXEC", syscall(SYS_personality, 0x0400000));
}

static void try_fd_changes(const char *arg) {
    static const struct timespec times[2] = {{0, UTIME_NOW}, {0, UTIME_NOW}};

    (void)arg;
    for (int fd = 0; fd < 65536; fd++) {
        if (!is_open(fd)) {
            continue;
        }
        resultf(fchmod(fd, 04777), "fchmod %d", fd);
        resultf(fchown(fd, 0, 0), "fchown %d", fd);
        resultf(syscall(SYS_fsetxattr, fd, "user.probe", "x", 1, 0), "fsetxattr %d", fd);
        resultf(futimens(fd, times), "futimens %d", fd);
        resultf(ftruncate(fd, 0), "ftruncate %d", fd);
        resultf(fallocate(fd, 0, 0, 4096), "fallocate %d", fd);
        resultf(pwrite(fd, "", 0, 0), "pwrite %d of nothing", fd);
        resultf(linkat(fd, "", AT_FDCWD, "/probe-linked", AT_EMPTY_PATH), "linkat %d", fd);
    }
}

static void try_kernel(const char *arg) {
    struct timeval now = {0, 0};
    union {
        char room[128];
        uint64_t align;
    } attributes;

    (void)arg;
    memset(&attributes, 0, sizeof attributes);
    result("bpf", syscall(SYS_bpf, 0, &attributes, sizeof attributes));
    result("perf_event_open", syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0));
    result("userfaultfd", opened((int)syscall(SYS_userfaultfd, 0)));
    result("io_uring_setup", opened((int)syscall(SYS_io_uring_setup, 1, &attributes)));
    result("init_module", syscall(SYS_init_module, &attributes, 1, ""));
    result("kexec_load", syscall(SYS_kexec_load, 0, 0, NULL, 0));
    result("swapon", syscall(SYS_swapon, "/x", 0));
    result("acct", syscall(SYS_acct, NULL));
    result("syslog", syscall(SYS_syslog, 3, attributes.room, 1));
    result("settimeofday", syscall(SYS_settimeofday, &now, NULL));
    result("quotactl", syscall(SYS_quotactl, 0, NULL, 0, NULL));
    result("mq_open", syscall(SYS_mq_open, "probe", O_CREAT | O_RDWR, 0600, NULL));
    result("shmget", syscall(SYS_shmget, 0, 4096, 01600));
    result("seccomp strict", syscall(SYS_seccomp, 999, 0, NULL));
    result("reboot", syscall(SYS_reboot, 0, 0, 0,
                             NULL)); /* wrong magic numbers: EINVAL where it is allowed */
}

static const struct {
    const char *name;
    void (*attack)(const char *);
} attacks[] = {
    {"write-root", try_write_root},
    {"read-host", try_read_host},
    {"mount", try_mount},
    {"unshare", try_unshare},
    {"setns", try_setns},
    {"setuid", try_setuid},
    {"capabilities", try_capabilities},
    {"chroot", try_chroot},
    {"ptrace", try_ptrace},
    {"kill", try_kill},
    {"connect", try_connect},
    {"connect-abstract", try_connect_abstract},
    {"sockets", try_sockets},
    {"open-by-handle", try_open_by_handle},
    {"mknod", try_mknod},
    {"sethostname", try_sethostname},
    {"reopen", try_reopen},
    {"openat", try_openat},
    {"priority", try_priority},
    {"rlimits", try_rlimits},
    {"keyctl", try_keyctl},
    {"ioctl", try_ioctl},
    {"exec", try_exec},
    {"fork", try_fork},
    {"mmap-exec", try_mmap_exec},
    {"fd-changes", try_fd_changes},
    {"kernel", try_kernel},
};
#define ATTACKS (sizeof attacks / sizeof *attacks)

/* --- ends and uses ---------------------------------------------------------------------------- */

static int flood(long long bytes) {
    static char block[65536];

    memset(block, 'x', sizeof block);
    while (bytes != 0) {
        size_t size = bytes > 0 && bytes < (long long)sizeof block ? (size_t)bytes : sizeof block;
        ssize_t count = write(1, block, size);

        if (count < 0) {
            return 3;
        }
        bytes -= bytes > 0 ? count : 0;
    }
    return 0;
}

static int use_memory(long mebibytes) {
    for (long i = 0; i < mebibytes; i++) {
        char *block =
            mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (block == MAP_FAILED) {
            resultf(-1, "memory after %ld MiB", i);
            return 3;
        }
        memset(block, 1, 1 << 20);
    }
    resultf(0, "memory after %ld MiB", mebibytes);
    return 0;
}

static int use_processes(long count) {
    for (long i = 0; i < count; i++) {
        pid_t child = fork();

        if (child < 0) {
            resultf(-1, "fork after %ld", i);
            return 3;
        }
        if (child == 0) {
            for (;;) {
                pause();
            }
        }
    }
    resultf(0, "fork after %ld", count);
    return 0;
}

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "";
    const char *arg = argc > 2 ? argv[2] : NULL;
    long number = arg != NULL ? atol(arg) : 0;

    if (strcmp(command, "report") == 0) {
        return report(argc - 2, argv + 2);
    }
    if (strcmp(command, "try") == 0 && arg != NULL) {
        for (size_t i = 0; i < ATTACKS; i++) {
            if (strcmp(arg, attacks[i].name) == 0) {
                attacks[i].attack(argc > 3 ? argv[3] : NULL);
                return 0;
            }
        }
        fprintf(stderr, "probe: no attack %s\n", arg);
        return 2;
    }
    if (strcmp(command, "ran") == 0) {
        result("execve /proc/self/exe", 0);
        return 0;
    }
    if (strcmp(command, "list") == 0) {
        for (size_t i = 0; i < SECTIONS; i++) {
            putf("section %s\n", sections[i].name);
        }
        for (size_t i = 0; i < ATTACKS; i++) {
            putf("attack %s\n", attacks[i].name);
        }
        out_flush();
        return 0;
    }
    if (strcmp(command, "exit") == 0) {
        return (int)number;
    }
    if (strcmp(command, "raise") == 0) {
        signal((int)number, SIG_DFL);
        raise((int)number);
        return 3; /* as pid 1 of a namespace it ignores what it does not handle */
    }
    if (strcmp(command, "sleep") == 0) {
        struct timespec time = {number, 0};

        result("sleeping", 0);
        nanosleep(&time, NULL);
        return 0;
    }
    if (strcmp(command, "spin") == 0) {
        for (volatile unsigned long turns = 0;; turns++) {
        }
    }
    if (strcmp(command, "flood") == 0) {
        return flood(arg != NULL ? atoll(arg) : -1);
    }
    if (strcmp(command, "memory") == 0) {
        return use_memory(number);
    }
    if (strcmp(command, "forks") == 0) {
        return use_processes(number);
    }
    fprintf(
        stderr,
        "probe: report [SECTION...] | try ATTACK [ARG] | list | exit N | raise N | sleep N | spin |"
        " flood N | memory N | forks N\n");
    return 2;
}
