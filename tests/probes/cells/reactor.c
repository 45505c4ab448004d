// A module without a start: functions to be called by name.
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#define EXPORT(name) __attribute__((export_name(name)))

static int ready;

__attribute__((constructor)) static void begin(void) { ready += 42; }

EXPORT("ready") int is_ready(void) { return ready; }
EXPORT("add") int32_t add(int32_t one, int32_t other) { return one + other; }
EXPORT("wide") int64_t wide(int64_t value) { return value; }
EXPORT("half") float half(float value) { return value / 2; }
EXPORT("tenth") double tenth(double value) { return value / 10; }
EXPORT("nothing") void nothing(void) {}
EXPORT("trap") void trap(void) { __builtin_trap(); }
EXPORT("forward") int forward(int from) {
    char text[64];
    ssize_t count = read(from, text, sizeof text);
    return count < 0 ? -1 : (int)write(1, text, (size_t)count);
}
