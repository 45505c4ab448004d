/*
 * What a process is and how it ends: the first argument says what to do. One line a result.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <wasi/api.h>

extern char **environ;

static volatile int last_level = -1;

static int recurse(int level) {
    volatile char frame[16];

    frame[0] = (char)level;
    return level == last_level ? 0 : recurse(level + 1) + frame[0];
}

static void say_arguments(int argc, char **argv) {
    printf("argc %d\n", argc);
    for (int i = 0; i < argc; i++) {
        printf("argv %d [%s]\n", i, argv[i]);
    }
}

static void say_clock(const char *name, clockid_t clock) {
    struct timespec first, second, step;

    if (clock_gettime(clock, &first) != 0 || clock_gettime(clock, &second) != 0 ||
        clock_getres(clock, &step) != 0) {
        printf("%s %d\n", name, errno);
        return;
    }
    long long a = first.tv_sec * 1000000000LL + first.tv_nsec;
    long long b = second.tv_sec * 1000000000LL + second.tv_nsec;
    printf("%s 0 %lld %lld %lld\n", name, a, b - a, step.tv_sec * 1000000000LL + step.tv_nsec);
}

static void say_random(void) {
    unsigned char bytes[16];

    if (getentropy(bytes, sizeof bytes) != 0) {
        printf("random %d\n", errno);
        return;
    }
    printf("random 0 ");
    for (size_t i = 0; i < sizeof bytes; i++) {
        printf("%02x", bytes[i]);
    }
    printf("\n");
}

/* Until there is no more: malloc, too, must say so and not end the cell. */
static void grow(void) {
    size_t pages = 0;

    while (__builtin_wasm_memory_grow(0, 1024) != SIZE_MAX) {
        pages += 1024;
    }
    while (__builtin_wasm_memory_grow(0, 1) != SIZE_MAX) {
        pages++;
    }
    printf("grow %d %zu %zu\n", pages > 0 ? 0 : ENOMEM, pages, (size_t)__builtin_wasm_memory_size(0));
    for (unsigned served = 0;; served++) {
        void *volatile memory = malloc(1u << 30);

        if (memory == NULL) {
            printf("malloc %d %u\n", errno, served);
            return;
        }
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "arguments";
    const char *more = argc > 2 ? argv[2] : "0";

    setvbuf(stdout, NULL, _IOLBF, 0);
#define IS(text) (strcmp(what, text) == 0)
    if (IS("environment")) {
        for (char **entry = environ; *entry != NULL; entry++) {
            printf("env [%s]\n", *entry);
        }
    } else if (IS("exit")) {
        exit((int)strtoul(more, NULL, 0));
    } else if (IS("return")) {
        return (int)strtoul(more, NULL, 0);
    } else if (IS("_Exit")) {
        printf("not flushed by _Exit");
        _Exit((int)strtoul(more, NULL, 0));
    } else if (IS("proc_exit")) {
        __wasi_proc_exit((__wasi_exitcode_t)strtoul(more, NULL, 0));
    } else if (IS("abort")) {
        abort();
    } else if (IS("unreachable")) {
        __builtin_trap();
    } else if (IS("divide")) {
        volatile int zero = 0;
        return 100 / zero;
    } else if (IS("address")) {
        volatile int *far = (volatile int *)(uintptr_t)0xfffffff0u;
        printf("%d\n", *far);
    } else if (IS("call")) {
        int (*volatile function)(int, int, int) = (int (*)(int, int, int))(uintptr_t)recurse;
        printf("%d\n", function(1, 2, 3));
    } else if (IS("overflow")) {
        printf("%d\n", recurse(0));
    } else if (IS("grow")) {
        grow();
    } else if (IS("clocks")) {
        say_clock("realtime", CLOCK_REALTIME);
        say_clock("monotonic", CLOCK_MONOTONIC);
    } else if (IS("sleep")) {
        struct timespec delay = {.tv_nsec = 20000000}, before, after;

        clock_gettime(CLOCK_MONOTONIC, &before);
        int result = nanosleep(&delay, NULL);
        clock_gettime(CLOCK_MONOTONIC, &after);
        printf("sleep %d %lld\n", result,
               (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec);
        /* Until a time, and not for one. */
        after.tv_nsec += 20000000;
        after.tv_sec += after.tv_nsec / 1000000000;
        after.tv_nsec %= 1000000000;
        result = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &after, NULL);
        clock_gettime(CLOCK_MONOTONIC, &before);
        printf("until %d %d\n", result,
               before.tv_sec > after.tv_sec ||
                   (before.tv_sec == after.tv_sec && before.tv_nsec >= after.tv_nsec));
    } else if (IS("random")) {
        say_random();
        say_random();
    } else if (IS("yield")) {
        printf("yield %d\n", sched_yield());
    } else {
        say_arguments(argc, argv);
    }
    return 0;
}
