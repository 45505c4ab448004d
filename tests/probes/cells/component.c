// A program of many small acts, one an argument; the tests make a component of it.
#define _POSIX_C_SOURCE 200809L

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void told(const char *act, const char *path, int failed) {
    printf("%s %s: %s\n", act, path, failed ? strerror(errno) : "ok");
}

static void show(const char *path) {
    char text[256];
    int fd = open(path, O_RDONLY);
    ssize_t count = fd < 0 ? -1 : read(fd, text, sizeof text);
    if (count < 0)
        told("read", path, 1);
    else
        printf("read %s: [%.*s]\n", path, (int)count, text);
}

static void put(const char *path, int flags) {
    int fd = open(path, O_WRONLY | flags, 0644);
    told(flags & O_CREAT ? "create" : "write", path, fd < 0 || write(fd, "written", 7) != 7);
}

static void list(const char *path) {
    DIR *directory = opendir(path);
    struct dirent *entry;
    if (!directory) {
        told("list", path, 1);
        return;
    }
    printf("list %s:", path);
    while ((entry = readdir(directory)))
        if (entry->d_name[0] != '.')
            printf(" %s", entry->d_name);
    printf("\n");
}

static void names(void) {
    struct stat state;
    told("mkdir", "sub", mkdir("/d/sub", 0755));
    told("rename", "sub", rename("/d/sub", "/d/moved"));
    told("stat", "moved", stat("/d/moved", &state) || !S_ISDIR(state.st_mode));
    told("rmdir", "moved", rmdir("/d/moved"));
    told("symlink", "link", symlink("file", "/d/link"));
    show("/d/link");
    told("unlink", "link", unlink("/d/link"));
}

static void grow(void) {
    volatile char *page;
    while ((page = malloc(1 << 20)))
        *page = 1;
    puts("no memory");
}

static void copy(void) {
    char text[4096];
    ssize_t count;
    while ((count = read(0, text, sizeof text)) > 0)
        if (write(1, text, (size_t)count) != count)
            exit(1);
}

static void spam(void) {
    static char text[4096];
    memset(text, 'x', sizeof text);
    while (write(1, text, sizeof text) > 0) {
    }
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IONBF, 0);
    for (int at = 1; at < argc; at++) {
        const char *act = argv[at], *rest = strchr(act, ':');
        rest = rest ? rest + 1 : "";
        if (!strncmp(act, "read:", 5))
            show(rest);
        else if (!strncmp(act, "write:", 6))
            put(rest, 0);
        else if (!strncmp(act, "create:", 7))
            put(rest, O_CREAT | O_EXCL);
        else if (!strncmp(act, "append:", 7))
            put(rest, O_APPEND);
        else if (!strncmp(act, "list:", 5))
            list(rest);
        else if (!strncmp(act, "say:", 4))
            puts(rest);
        else if (!strncmp(act, "env:", 4))
            puts(getenv(rest) ? getenv(rest) : "(none)");
        else if (!strcmp(act, "names"))
            names();
        else if (!strcmp(act, "grow"))
            grow();
        else if (!strcmp(act, "copy"))
            copy();
        else if (!strcmp(act, "spam"))
            spam();
        else if (!strcmp(act, "complain"))
            fputs("complaint\n", stderr);
        else if (!strcmp(act, "nap"))
            nanosleep(&(struct timespec){0, 20000000}, NULL);
        else if (!strcmp(act, "trap"))
            __builtin_trap();
        else if (!strcmp(act, "fail"))
            return 1;
        else if (!strcmp(act, "loop"))
            for (volatile int turn = 0;; turn++) {
            }
    }
    return 0;
}
