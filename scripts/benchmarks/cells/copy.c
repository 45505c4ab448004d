/* copy IN OUT SIZE: copies IN to OUT with calls of SIZE bytes. IN and OUT are numbers or paths. */
#include "timing.h"

int main(int argc, char **argv) {
    size_t size = argc == 4 ? strtoul(argv[3], NULL, 10) : 0;
    char *buffer = malloc(size);
    uint64_t total = 0;

    if (size == 0 || buffer == NULL) {
        die("usage: copy IN OUT SIZE");
    }
    int in = descriptor(argv[1], O_RDONLY);
    int out = descriptor(argv[2], O_WRONLY | O_CREAT | O_TRUNC);
    uint64_t begun = nanoseconds();
    for (;;) {
        ssize_t count = read(in, buffer, size);
        if (count < 0) {
            die("read");
        }
        if (count == 0) {
            break;
        }
        for (ssize_t done = 0; done < count;) {
            ssize_t written = write(out, buffer + done, (size_t)(count - done));
            if (written <= 0) {
                die("write");
            }
            done += written;
        }
        total += (uint64_t)count;
    }
    report(total, begun);
    return EXIT_SUCCESS;
}
