/*
 * What a cell does with its time and its files: the first argument says what.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int granted(const char *variable) {
    const char *text = getenv(variable);

    return text == NULL ? -1 : (int)strtol(text, NULL, 10);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    long more = argc > 2 ? strtol(argv[2], NULL, 10) : 0;

    if (strcmp(what, "sleep") == 0) {
        struct timespec delay = {.tv_sec = more / 1000, .tv_nsec = more % 1000 * 1000000};

        nanosleep(&delay, NULL);
        printf("%s\n", argc > 3 ? argv[3] : "");
    } else if (strcmp(what, "spin") == 0) {
        for (volatile int turning = 1; turning;) {
        }
    } else if (strcmp(what, "exit") == 0) {
        return (int)more;
    } else if (strcmp(what, "trap") == 0) {
        __builtin_trap();
    } else if (strcmp(what, "copy") == 0) {
        char buffer[4096];
        ssize_t count;

        while ((count = read(0, buffer, sizeof buffer)) > 0) {
            write(1, buffer, (size_t)count);
        }
        fprintf(stderr, "%s\n", getenv("COLOUR") != NULL ? getenv("COLOUR") : "");
    } else if (strcmp(what, "edit") == 0) {
        char first;
        int fd = granted("WW_FD_BOOK");

        if (read(fd, &first, 1) != 1 || lseek(fd, 0, SEEK_END) < 0 || write(fd, &first, 1) != 1) {
            return 1;
        }
    } else if (strcmp(what, "stretch") == 0) {
        return ftruncate(granted("WW_FD_BOOK"), more) == 0 ? 0 : 1;
    } else if (strcmp(what, "far") == 0) {
        /* One byte at a place in each of them: a number, or what the variable holds. */
        for (int i = 3; i < argc; i++) {
            int fd = argv[i][0] == 'W' ? granted(argv[i]) : (int)strtol(argv[i], NULL, 10);

            if (pwrite(fd, "x", 1, more) != 1) {
                return 1;
            }
        }
    }
    return 0;
}
