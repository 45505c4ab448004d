/* The smallest cell: says hello, its arguments, and what it was granted. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    const char *grants = getenv("WW_FDS");

    printf("Hello from a cell.");
    for (int i = 1; i < argc; i++) {
        printf(" %s", argv[i]);
    }
    printf("\nGranted: %s\n", grants != NULL ? grants : "(WW_FDS is not set)");
    /* A full disk or a closed pipe shows only here. */
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
