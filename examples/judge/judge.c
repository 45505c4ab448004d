/* A submission to a judge: reads pairs of numbers, and prints the sum of each. It is a good one, or one
   of the others that a judge has to expect, as its argument says. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long wrong_by;

static void solve(void) {
    long a, b;
    while (scanf("%ld %ld", &a, &b) == 2)
        printf("%ld\n", a + b + (a == b ? wrong_by : 0));
}

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "right";

    if (strcmp(kind, "wrong") == 0) {
        wrong_by = 1;
    } else if (strcmp(kind, "loop") == 0) {
        for (volatile int forever = 1; forever;)
            ;
    } else if (strcmp(kind, "hog") == 0) {
        for (volatile char *more; (more = malloc(1 << 20)) != NULL;)
            for (int at = 0; at < 1 << 20; at += 4096)
                more[at] = 1;
    } else if (strcmp(kind, "flood") == 0) {
        for (;;)
            puts("1000000");
    } else if (strcmp(kind, "trap") == 0) {
        __builtin_trap();
    } else if (strcmp(kind, "fail") == 0) {
        return 3;
    }
    solve();
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
