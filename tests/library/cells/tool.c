/* What the tests of the library run: each argument is something to do, in order. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static char block[65536];

/* The number of a grant, or the number itself. */
static int number(const char *text) {
    char name[80] = "WW_FD_";
    strncat(name, text, sizeof name - 7);
    for (char *at = name; *at != '\0'; at++)
        *at = (char)toupper((unsigned char)*at);
    const char *found = getenv(name);
    return atoi(found != NULL ? found : text);
}

static int copy(int from, int to) {
    ssize_t count;
    while ((count = read(from, block, sizeof block)) > 0)
        if (write(to, block, (size_t)count) != count)
            return -1;
    return (int)count;
}

static int list(const char *path) {
    DIR *folder = opendir(path);
    if (folder == NULL)
        return -1;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        if (entry->d_name[0] != '.')
            printf("%s\n", entry->d_name);
    return closedir(folder);
}

int main(int argc, char **argv) {
    for (int at = 1; at < argc; at++) {
        const char *what = argv[at], *value = strchr(what, '=');
        value = value != NULL ? value + 1 : "";
        int failed = 0;
        if (strcmp(what, "name") == 0) {
            puts(argv[0]);
        } else if (strncmp(what, "say=", 4) == 0) {
            fputs(value, stdout);
        } else if (strncmp(what, "complain=", 9) == 0) {
            fputs(value, stderr);
        } else if (strncmp(what, "copy=", 5) == 0) {
            fflush(stdout);
            failed = copy(number(value), STDOUT_FILENO);
        } else if (strncmp(what, "tell=", 5) == 0) {
            failed = write(number(value), "told", 4) != 4;
        } else if (strncmp(what, "wait=", 5) == 0) {
            failed = read(number(value), block, 1) != 1;
        } else if (strncmp(what, "hasten=", 7) == 0) {
            int fd = number(value);
            failed = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        } else if (strcmp(what, "env") == 0) {
            for (char **each = environ; *each != NULL; each++)
                puts(*each);
        } else if (strncmp(what, "list=", 5) == 0) {
            failed = list(value);
        } else if (strncmp(what, "open=", 5) == 0) {
            int fd = open(value, O_RDONLY);
            failed = fd < 0 || copy(fd, STDOUT_FILENO);
        } else if (strncmp(what, "make=", 5) == 0) {
            failed = open(value, O_WRONLY | O_CREAT, 0666) < 0;
        } else if (strncmp(what, "fill=", 5) == 0) {
            memset(block, 'x', sizeof block);
            for (long left = atol(value); left > 0; left -= (long)sizeof block)
                if (write(STDOUT_FILENO, block, left < (long)sizeof block ? (size_t)left : sizeof block) < 0)
                    failed = 1;
        } else if (strncmp(what, "far=", 4) == 0) {
            failed = lseek(STDOUT_FILENO, atoll(value), SEEK_SET) < 0 ||
                     write(STDOUT_FILENO, "x", 1) != 1;
        } else if (strcmp(what, "hog") == 0) {
            /* Volatile, or the compiler would leave out what nobody reads. */
            for (volatile char *more; (more = malloc(1 << 20)) != NULL;)
                for (int byte = 0; byte < 1 << 20; byte += 4096)
                    more[byte] = 1;
        } else if (strcmp(what, "trap") == 0) {
            __builtin_trap();
        } else if (strcmp(what, "spin") == 0) {
            for (volatile int turn = 0;; turn++)
                ;
        } else if (strncmp(what, "exit=", 5) == 0) {
            exit(atoi(value));
        } else {
            fprintf(stderr, "cannot %s\n", what);
            return 99;
        }
        fflush(NULL);
        if (failed) {
            fprintf(stderr, "%s: %s\n", what, strerror(errno));
            return 98;
        }
    }
    return 0;
}
