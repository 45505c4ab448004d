/*
 * Looks at paths as a C program does: one line for each, on stdout.
 *
 *   content PATH...       type, size and the first bytes; of a directory, its sorted names
 *   content sum PATH...   size and a sum of the bytes
 *   content hold PATH...  opens each and keeps it open; prints how many could be opened, and why
 *                         the next one could not
 *   content tty           what isatty(3) says of 0, 1, 2, and LINES and COLUMNS
 *   content spin PATH     asks for the state of a path for ever
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void list(const char *path) {
    static char *names[4096];
    size_t count = 0;
    DIR *directory = opendir(path);
    if (directory == NULL) {
        printf("opendir: %s\n", strerror(errno));
        return;
    }
    errno = 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL && count < 4096;)
        names[count++] = strdup(entry->d_name);
    if (errno)
        printf("readdir: %s ", strerror(errno));
    closedir(directory);
    qsort(names, count, sizeof *names, by_name);
    printf("directory of %zu:", count);
    for (size_t i = 0; i < count && i < 8; i++)
        printf(" %s", names[i]);
    putchar('\n');
}

static void look(const char *path) {
    struct stat state;
    char text[17];
    printf("%s: ", path);
    if (stat(path, &state) != 0) {
        printf("stat: %s\n", strerror(errno));
        return;
    }
    if (S_ISDIR(state.st_mode)) {
        list(path);
        return;
    }
    int file = open(path, O_RDONLY);
    if (file < 0) {
        printf("%lld bytes, open: %s\n", (long long)state.st_size, strerror(errno));
        return;
    }
    ssize_t got = read(file, text, sizeof text - 1);
    text[got < 0 ? 0 : got] = 0;
    printf("%lld bytes, %s\n", (long long)state.st_size, got < 0 ? strerror(errno) : text);
    close(file);
}

static void sum(const char *path) {
    static unsigned char buffer[1 << 16];
    uint32_t total = 0;
    long long size = 0;
    int file = open(path, O_RDONLY);
    if (file < 0) {
        printf("open: %s\n", strerror(errno));
        return;
    }
    for (ssize_t got; (got = read(file, buffer, sizeof buffer)) > 0; size += got)
        for (ssize_t i = 0; i < got; i++)
            total = total * 31 + buffer[i];
    close(file);
    printf("%lld bytes, sum %u\n", size, (unsigned)total);
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    if (strcmp(what, "tty") == 0) {
        const char *lines = getenv("LINES"), *columns = getenv("COLUMNS");
        printf("%d %d %d %s %s\n", isatty(0), isatty(1), isatty(2), lines ? lines : "-",
               columns ? columns : "-");
        return 0;
    }
    if (strcmp(what, "spin") == 0)
        for (struct stat state;;)
            stat(words[2], &state);
    if (strcmp(what, "hold") == 0) {
        int opened = 0;
        for (int i = 2; i < count && open(words[i], O_RDONLY) >= 0; i++)
            opened++;
        printf("%d, %s\n", opened, opened < count - 2 ? strerror(errno) : "all");
        return 0;
    }
    for (int i = strcmp(what, "sum") == 0 ? 2 : 1; i < count; i++)
        (strcmp(what, "sum") == 0 ? sum : look)(words[i]);
    return 0;
}
