/*
 * The C library's own functions on what was granted, as programs use them. Each argument is one
 * call, of words with a space between; each prints one line: the call, errno, the result. Paths may
 * hold no space.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static char *words[5];

static int number(int index) {
    return words[index] != NULL ? (int)strtol(words[index], NULL, 0) : 0;
}

static void say(long result) {
    printf("%s %d %ld\n", words[0], result < 0 ? errno : 0, result);
}

static void say_text(const char *text, long size) {
    if (text == NULL || size < 0) {
        say(-1);
    } else {
        printf("%s 0 %.*s\n", words[0], (int)size, text);
    }
}

static int flags(const char *text) {
    static const struct {
        const char *name;
        int flag;
    } known[] = {
        {"r", O_RDONLY},   {"w", O_WRONLY},        {"rw", O_RDWR},         {"creat", O_CREAT},
        {"excl", O_EXCL},  {"trunc", O_TRUNC},     {"append", O_APPEND},   {"directory", O_DIRECTORY},
        {"nonblock", O_NONBLOCK}, {"nofollow", O_NOFOLLOW},
    };
    char copy[64];
    int all = 0;

    snprintf(copy, sizeof copy, "%s", text);
    for (char *save, *one = strtok_r(copy, "+", &save); one != NULL; one = strtok_r(NULL, "+", &save)) {
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
            if (strcmp(one, known[i].name) == 0) {
                all |= known[i].flag;
            }
        }
    }
    return all;
}

static const char *kind(mode_t mode) {
    return S_ISREG(mode)    ? "file"
           : S_ISDIR(mode)  ? "directory"
           : S_ISLNK(mode)  ? "link"
           : S_ISCHR(mode)  ? "character"
           : S_ISSOCK(mode) ? "socket"
                            : "other";
}

static void list(const char *path) {
    DIR *directory = opendir(path);
    struct dirent *entry;

    if (directory == NULL) {
        say(-1);
        return;
    }
    printf("opendir 0");
    while ((entry = readdir(directory)) != NULL) {
        printf(" %s", entry->d_name);
    }
    printf("\n");
    closedir(directory);
}

static void copy_by_stdio(const char *path) {
    FILE *file = fopen(path, "r");
    char text[200];

    if (file == NULL) {
        say(-1);
        return;
    }
    say_text(text, (long)fread(text, 1, sizeof text, file));
    fclose(file);
}

static void append_by_stdio(const char *path, const char *mode, const char *text) {
    FILE *file = fopen(path, mode);

    if (file == NULL) {
        say(-1);
        return;
    }
    int result = fputs(text, file);
    say(fclose(file) == 0 && result >= 0 ? (long)strlen(text) : -1);
}

static void run(void) {
    static char buffer[4096];
    const char *name = words[0];
    struct stat state;

#define IS(text) (strcmp(name, text) == 0)
    errno = 0;
    if (IS("open")) {
        say(open(words[1], flags(words[2]), 0600));
    } else if (IS("close")) {
        say(close(number(1)));
    } else if (IS("read")) {
        say_text(buffer, read(number(1), buffer, (size_t)number(2)));
    } else if (IS("write")) {
        say(write(number(1), words[2], strlen(words[2])));
    } else if (IS("recv")) {
        say_text(buffer, recv(number(1), buffer, (size_t)number(2), 0));
    } else if (IS("send")) {
        say(send(number(1), words[2], strlen(words[2]), 0));
    } else if (IS("lseek")) {
        say((long)lseek(number(1), number(2), number(3)));
    } else if (IS("fread")) {
        copy_by_stdio(words[1]);
    } else if (IS("fputs")) {
        append_by_stdio(words[1], words[2], words[3]);
    } else if (IS("stat") || IS("lstat") || IS("fstat")) {
        int result = IS("stat")    ? stat(words[1], &state)
                     : IS("lstat") ? lstat(words[1], &state)
                                   : fstat(number(1), &state);
        if (result < 0) {
            say(-1);
        } else {
            printf("%s 0 %s %lld\n", name, kind(state.st_mode), (long long)state.st_size);
        }
    } else if (IS("readlink")) {
        say_text(buffer, readlink(words[1], buffer, sizeof buffer));
    } else if (IS("opendir")) {
        list(words[1]);
    } else if (IS("access")) {
        say(access(words[1], number(2)));
    } else if (IS("mkdir")) {
        say(mkdir(words[1], 0700));
    } else if (IS("rmdir")) {
        say(rmdir(words[1]));
    } else if (IS("unlink")) {
        say(unlink(words[1]));
    } else if (IS("rename")) {
        say(rename(words[1], words[2]));
    } else if (IS("symlink")) {
        say(symlink(words[1], words[2]));
    } else if (IS("link")) {
        say(link(words[1], words[2]));
    } else if (IS("truncate")) {
        say(truncate(words[1], number(2)));
    } else if (IS("utimens")) {
        say(utimensat(AT_FDCWD, words[1], NULL, 0));
    } else if (IS("isatty")) {
        int result = isatty(number(1));
        printf("isatty %d %d\n", result ? 0 : errno, result);
    } else if (IS("getfl")) {
        int result = fcntl(number(1), F_GETFL);
        printf("getfl %d %s%s%s\n", result < 0 ? errno : 0,
               result < 0                            ? "-1"
               : (result & O_ACCMODE) == O_RDWR      ? "rw"
               : (result & O_ACCMODE) == O_WRONLY    ? "w"
               : (result & O_ACCMODE) == O_RDONLY    ? "r"
                                                     : "none",
               result >= 0 && result & O_APPEND ? "+append" : "",
               result >= 0 && result & O_NONBLOCK ? "+nonblock" : "");
    } else if (IS("poll")) {
        struct pollfd polled = {.fd = number(1), .events = POLLRDNORM | POLLWRNORM};
        int result = poll(&polled, 1, 60000);
        printf("poll %d %d%s%s%s\n", result < 0 ? errno : 0, result,
               polled.revents & POLLRDNORM ? " in" : "", polled.revents & POLLWRNORM ? " out" : "",
               polled.revents & POLLNVAL ? " invalid" : "");
    } else {
        printf("%s unknown\n", name);
        exit(2);
    }
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        char *line = strdup(argv[i]);

        memset(words, 0, sizeof words);
        words[0] = strtok(line, " ");
        for (int k = 1; k < 5 && words[k - 1] != NULL; k++) {
            words[k] = strtok(NULL, " ");
        }
        if (words[0] != NULL) {
            run();
        }
        free(line);
    }
    return 0;
}
