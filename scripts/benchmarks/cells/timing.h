/* What the measuring cells share: a clock, and the one line that each writes to its stderr. */
#ifndef TIMING_H
#define TIMING_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t nanoseconds(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void die(const char *what) {
    perror(what);
    exit(EXIT_FAILURE);
}

/* A descriptor's number, or the path of a file to open. */
static inline int descriptor(const char *text, int flags) {
    int fd = *text >= '0' && *text <= '9' ? atoi(text) : open(text, flags, 0600);

    if (fd < 0) {
        die(text);
    }
    return fd;
}

/* What was done, how often, and in what time. */
static inline void report(uint64_t amount, uint64_t begun) {
    fprintf(stderr, "%llu %llu\n", (unsigned long long)amount,
            (unsigned long long)(nanoseconds() - begun));
}

#endif
