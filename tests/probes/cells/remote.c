/*
 * A cell by remote control: does one raw call of WASI for each line that it reads, and answers with
 * one line. Numbers go in as they are, so that addresses and lengths can be as wrong as a test wants.
 *
 *     remote                    commands from descriptor 0, answers to 1
 *     remote IN OUT             other descriptors for both
 *     remote - OUT COMMAND...   commands from the arguments
 *
 * Commands and answers, with numbers as in C and bytes in hexadecimal:
 *
 *     call NAME NUMBER...       NAME ERRNO
 *     poke ADDRESS BYTES        poke
 *     peek ADDRESS COUNT        peek BYTES
 *     scratch                   scratch ADDRESS SIZE     memory that is free for the caller
 *     memory                    memory BYTES             the size of all of it
 *     grow PAGES                grow PAGES               how many there were before, or -1
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint32_t ptr; /* an address in this cell's memory, valid or not */

#define I uint32_t
#define L uint64_t
/* Every function of preview 1: its name, how many parameters, their types. */
#define CALLS(X)                                                                                   \
    X(args_get, 2, I, I)                                                                           \
    X(args_sizes_get, 2, I, I)                                                                     \
    X(environ_get, 2, I, I)                                                                        \
    X(environ_sizes_get, 2, I, I)                                                                  \
    X(clock_res_get, 2, I, I)                                                                      \
    X(clock_time_get, 3, I, L, I)                                                                  \
    X(fd_advise, 4, I, L, L, I)                                                                    \
    X(fd_allocate, 3, I, L, L)                                                                     \
    X(fd_close, 1, I)                                                                              \
    X(fd_datasync, 1, I)                                                                           \
    X(fd_fdstat_get, 2, I, I)                                                                      \
    X(fd_fdstat_set_flags, 2, I, I)                                                                \
    X(fd_fdstat_set_rights, 3, I, L, L)                                                            \
    X(fd_filestat_get, 2, I, I)                                                                    \
    X(fd_filestat_set_size, 2, I, L)                                                               \
    X(fd_filestat_set_times, 4, I, L, L, I)                                                        \
    X(fd_pread, 5, I, I, I, L, I)                                                                  \
    X(fd_prestat_get, 2, I, I)                                                                     \
    X(fd_prestat_dir_name, 3, I, I, I)                                                             \
    X(fd_pwrite, 5, I, I, I, L, I)                                                                 \
    X(fd_read, 4, I, I, I, I)                                                                      \
    X(fd_readdir, 5, I, I, I, L, I)                                                                \
    X(fd_renumber, 2, I, I)                                                                        \
    X(fd_seek, 4, I, L, I, I)                                                                      \
    X(fd_sync, 1, I)                                                                               \
    X(fd_tell, 2, I, I)                                                                            \
    X(fd_write, 4, I, I, I, I)                                                                     \
    X(path_create_directory, 3, I, I, I)                                                           \
    X(path_filestat_get, 5, I, I, I, I, I)                                                         \
    X(path_filestat_set_times, 7, I, I, I, I, L, L, I)                                             \
    X(path_link, 7, I, I, I, I, I, I, I)                                                           \
    X(path_open, 9, I, I, I, I, I, L, L, I, I)                                                     \
    X(path_readlink, 6, I, I, I, I, I, I)                                                          \
    X(path_remove_directory, 3, I, I, I)                                                           \
    X(path_rename, 6, I, I, I, I, I, I)                                                            \
    X(path_symlink, 5, I, I, I, I, I)                                                              \
    X(path_unlink_file, 3, I, I, I)                                                                \
    X(poll_oneoff, 4, I, I, I, I)                                                                  \
    X(proc_raise, 1, I)                                                                            \
    X(random_get, 2, I, I)                                                                         \
    X(sched_yield, 0, void)                                                                        \
    X(sock_accept, 3, I, I, I)                                                                     \
    X(sock_recv, 6, I, I, I, I, I, I)                                                              \
    X(sock_send, 5, I, I, I, I, I)                                                                 \
    X(sock_shutdown, 2, I, I)

#define DECLARE(name, count, ...)                                                                  \
    __attribute__((__import_module__("wasi_snapshot_preview1"), __import_name__(#name))) int32_t   \
        w_##name(__VA_ARGS__);
CALLS(DECLARE)

#define A0
#define A1 a[0]
#define A2 A1, a[1]
#define A3 A2, a[2]
#define A4 A3, a[3]
#define A5 A4, a[4]
#define A6 A5, a[5]
#define A7 A6, a[6]
#define A8 A7, a[7]
#define A9 A8, a[8]
#define MOST_PARAMETERS 9

static char line[512 * 1024], answer[512 * 1024 + 64];
static uint8_t scratch[1024 * 1024] __attribute__((aligned(16)));
static uint32_t input = 0, output = 1;
static uint8_t received[65536];
static uint32_t received_count, received_used;

static struct {
    ptr address;
    uint32_t size;
} vector;
static uint32_t moved;

static ptr at(const void *object) {
    return (ptr)(uintptr_t)object;
}

static _Noreturn void fail(const char *what) {
    fprintf(stderr, "remote: %s\n", what);
    exit(99);
}

static bool next_byte(char *byte) {
    if (received_used == received_count) {
        vector.address = at(received);
        vector.size = sizeof received;
        if (w_fd_read(input, at(&vector), 1, at(&moved)) != 0) {
            fail("cannot read commands");
        }
        received_count = moved;
        received_used = 0;
        if (received_count == 0) {
            return false;
        }
    }
    *byte = (char)received[received_used++];
    return true;
}

static bool read_line(void) {
    size_t used = 0;
    char byte;

    while (next_byte(&byte)) {
        if (byte == '\n') {
            line[used] = '\0';
            return true;
        }
        if (used == sizeof line - 1) {
            fail("a line is too long");
        }
        line[used++] = byte;
    }
    return false;
}

static void reply(size_t size) {
    answer[size++] = '\n';
    for (size_t done = 0; done < size; done += moved) {
        vector.address = at(answer + done);
        vector.size = (uint32_t)(size - done);
        if (w_fd_write(output, at(&vector), 1, at(&moved)) != 0) {
            exit(98);
        }
    }
}

static int32_t call(const char *name, uint32_t count, const uint64_t *a) {
#define DISPATCH(function, parameters, ...)                                                        \
    if (strcmp(name, #function) == 0) {                                                            \
        if (count != parameters) {                                                                 \
            fail("wrong number of parameters for " #function);                                     \
        }                                                                                          \
        return w_##function(A##parameters);                                                        \
    }
    CALLS(DISPATCH)
    fail("no such function");
}

static uint64_t number(void) {
    const char *text = strtok(NULL, " ");
    char *end;

    if (text == NULL) {
        fail("a number is missing");
    }
    uint64_t value = strtoull(text, &end, 0);
    if (*end != '\0') {
        fail("not a number");
    }
    return value;
}

static uint8_t nibble(char digit) {
    return (uint8_t)(digit <= '9' ? digit - '0' : digit - 'a' + 10);
}

static void obey(void) {
    static const char digits[] = "0123456789abcdef";
    const char *verb = strtok(line, " ");
    int size = 0;

    if (verb == NULL) {
        fail("an empty line");
    } else if (strcmp(verb, "call") == 0) {
        const char *name = strtok(NULL, " "), *text;
        uint64_t a[MOST_PARAMETERS];
        uint32_t count = 0;

        while ((text = strtok(NULL, " ")) != NULL) {
            if (count == MOST_PARAMETERS) {
                fail("too many parameters");
            }
            a[count++] = strtoull(text, NULL, 0);
        }
        if (name == NULL) {
            fail("no name");
        }
        size = sprintf(answer, "%s %d", name, (int)call(name, count, a));
    } else if (strcmp(verb, "poke") == 0) {
        uint8_t *to = (uint8_t *)(uintptr_t)number();
        const char *text = strtok(NULL, " ");

        for (; text != NULL && text[0] != '\0'; text += 2) {
            *to++ = (uint8_t)(nibble(text[0]) << 4 | nibble(text[1]));
        }
        size = sprintf(answer, "poke");
    } else if (strcmp(verb, "peek") == 0) {
        const uint8_t *from = (const uint8_t *)(uintptr_t)number();
        uint64_t count = number();

        size = sprintf(answer, "peek ");
        if (count > (sizeof answer - 64) / 2) {
            fail("too much to peek");
        }
        for (uint64_t i = 0; i < count; i++) {
            answer[size++] = digits[from[i] >> 4];
            answer[size++] = digits[from[i] & 15];
        }
    } else if (strcmp(verb, "scratch") == 0) {
        size = sprintf(answer, "scratch %u %u", (unsigned)at(scratch), (unsigned)sizeof scratch);
    } else if (strcmp(verb, "memory") == 0) {
        size = sprintf(answer, "memory %llu", (unsigned long long)__builtin_wasm_memory_size(0) << 16);
    } else if (strcmp(verb, "grow") == 0) {
        size = sprintf(answer, "grow %d", (int)__builtin_wasm_memory_grow(0, (size_t)number()));
    } else {
        fail("no such command");
    }
    reply((size_t)size);
}

int main(int argc, char **argv) {
    if (argc >= 3 && strcmp(argv[1], "-") == 0) {
        output = (uint32_t)strtoul(argv[2], NULL, 10);
        for (int i = 3; i < argc; i++) {
            if (strlen(argv[i]) >= sizeof line) {
                fail("an argument is too long");
            }
            strcpy(line, argv[i]);
            obey();
        }
        return 0;
    }
    if (argc == 3) {
        input = (uint32_t)strtoul(argv[1], NULL, 10);
        output = (uint32_t)strtoul(argv[2], NULL, 10);
    } else if (argc != 1) {
        fail("usage: remote [IN OUT | - OUT COMMAND...]");
    }
    while (read_line()) {
        obey();
    }
    return 0;
}
