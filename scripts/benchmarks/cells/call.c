/* call FD COUNT: writes nothing to FD, COUNT times. FD is a number or a path. */
#include "timing.h"
#include <wasi/api.h>

int main(int argc, char **argv) {
    if (argc != 3) {
        die("usage: call FD COUNT");
    }
    int fd = descriptor(argv[1], O_WRONLY);
    uint64_t count = strtoull(argv[2], NULL, 10);
    /* An address in memory, and no bytes there. */
    const __wasi_ciovec_t nothing = {(const uint8_t *)argv, 0};
    __wasi_size_t written;
    uint64_t begun = nanoseconds();

    for (uint64_t i = 0; i < count; i++) {
        if (__wasi_fd_write((__wasi_fd_t)fd, &nothing, 1, &written) != 0 || written != 0) {
            fputs("fd_write failed\n", stderr);
            return EXIT_FAILURE;
        }
    }
    report(count, begun);
    return EXIT_SUCCESS;
}
