/*
 * Copy the granted descriptor `input` to the granted descriptor `output`.
 *
 * Shows the whole of what a cell must know: WW_FD_<NAME> holds the number, and read() and write()
 * work on it at once. There is nothing to open, and no path.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int granted(const char *variable) {
    const char *text = getenv(variable);
    char *end;
    long number;

    if (text == NULL) {
        fprintf(stderr, "cat-fds: %s is not set: grant it with --fd\n", variable);
        exit(2);
    }
    number = strtol(text, &end, 10);
    if (end == text || *end != '\0' || number < 0 || number > 65535) {
        fprintf(stderr, "cat-fds: %s is not a number: %s\n", variable, text);
        exit(2);
    }
    return (int)number;
}

int main(void) {
    static char buffer[65536];
    int input = granted("WW_FD_INPUT");
    int output = granted("WW_FD_OUTPUT");
    ssize_t count;

    fprintf(stderr, "input=%d output=%d\n", input, output);
    while ((count = read(input, buffer, sizeof buffer)) != 0) {
        if (count < 0) {
            fprintf(stderr, "cat-fds: reading input (fd %d): %s\n", input, strerror(errno));
            return 1;
        }
        /* A pipe or a socket may take less than it is given. */
        for (ssize_t done = 0; done < count;) {
            ssize_t written = write(output, buffer + done, (size_t)(count - done));

            if (written < 0) {
                fprintf(stderr, "cat-fds: writing output (fd %d): %s\n", output, strerror(errno));
                return 1;
            }
            done += written;
        }
    }
    return 0;
}
