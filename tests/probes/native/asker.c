/*
 * A native program in the cell's place that asks ww for content, as a cell that has broken out of
 * its engine could: over the one SOCK_SEQPACKET socket that it has.
 *
 *   asker ask BASE PATH         a request of the right form, and what comes: errno, then any fds
 *   asker read ADDRESS          likewise; with a descriptor, its size and whether it can be written
 *   asker send SIZE             so many bytes 'x' in one packet, and then an honest request
 *   asker empty | rights        an empty packet; a descriptor beside an honest request; likewise
 *   asker mute COUNT ADDRESS    so many honest requests for a descriptor before the first answer is taken
 *   asker flood                 honest requests and answers without an end
 *   asker stay                  nothing, for ever
 *
 * Each line: what, the result, errno.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FIND = 0, READ = 2 };

static int find_socket(void) {
    for (int fd = 3; fd < 4096; fd++) {
        int type = 0;
        socklen_t size = sizeof type;
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET)
            return fd;
    }
    return -1;
}

static void tell(const char *what, long result) {
    printf("%s %ld %d\n", what, result, result < 0 ? errno : 0);
    fflush(stdout);
}

static ssize_t ask(int fd, int operation, const char *base, const char *path) {
    static char packet[1 << 14];
    size_t size = 0;
    packet[size++] = (char)operation;
    size += (size_t)sprintf(packet + size, "%.5000s", base) + 1;
    size += (size_t)sprintf(packet + size, "%.5000s", path);
    return send(fd, packet, size, MSG_NOSIGNAL);
}

/* The errno in the answer; -1 where there is none. */
static long take(int fd, int *received) {
    char data[1024], room[CMSG_SPACE(sizeof(int))];
    struct iovec part = {data, sizeof data};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = room,
                             .msg_controllen = sizeof room};
    ssize_t got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    if (got < 4) {
        if (got >= 0)
            errno = 0;
        return -1;
    }
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    *received = -1;
    if (rights != NULL && rights->cmsg_type == SCM_RIGHTS)
        memcpy(received, CMSG_DATA(rights), sizeof *received);
    int32_t number;
    memcpy(&number, data, sizeof number);
    return number;
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    int received = -1, fd = find_socket();
    tell("socket", fd);
    if (fd < 0)
        return 1;
    if (strcmp(what, "ask") == 0 || strcmp(what, "read") == 0) {
        int reads = what[0] == 'r';
        tell("send", ask(fd, reads ? READ : FIND, words[2], reads ? "" : words[3]));
        tell("errno", take(fd, &received));
        if (received >= 0) {
            struct stat state;
            fstat(received, &state);
            tell("size", (long)state.st_size);
            tell("write", write(received, "x", 1));
            tell("truncate", ftruncate(received, 1));
            char self[64];
            snprintf(self, sizeof self, "/proc/self/fd/%d", received);
            tell("reopen", open(self, O_RDWR));
        }
        return 0;
    }
    if (strcmp(what, "send") == 0) {
        size_t size = (size_t)atol(words[2]);
        char *packet = malloc(size + 1);
        memset(packet, 'x', size);
        tell("send", send(fd, packet, size, MSG_NOSIGNAL));
    } else if (strcmp(what, "empty") == 0) {
        tell("send", send(fd, "", 0, MSG_NOSIGNAL));
    } else if (strcmp(what, "rights") == 0) {
        char request[] = "\0\0x", room[CMSG_SPACE(sizeof(int))] = {0};
        int sent = 1;
        struct iovec part = {request, 3};
        struct msghdr message = {.msg_iov = &part,
                                 .msg_iovlen = 1,
                                 .msg_control = room,
                                 .msg_controllen = sizeof room};
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof sent);
        memcpy(CMSG_DATA(rights), &sent, sizeof sent);
        tell("send", sendmsg(fd, &message, MSG_NOSIGNAL));
    } else if (strcmp(what, "mute") == 0) {
        long sent = 0;
        while (sent < atol(words[2]) && ask(fd, READ, words[3], "") > 0)
            sent++;
        tell("sent", sent);
        /* What was in flight until now; the end of the connection may be told before it. */
        long taken = 0;
        for (;;) {
            if (take(fd, &received) == 0 && received >= 0)
                taken++;
            else if (errno != ECONNRESET)
                break;
        }
        tell("taken", taken);
        return 0;
    } else if (strcmp(what, "flood") == 0) {
        while (ask(fd, FIND, "", words[2]) > 0 && take(fd, &received) >= 0)
            ;
        tell("ended", -1);
        return 0;
    }
    if (strcmp(what, "stay") == 0)
        for (;;)
            sleep(1000);
    /* What is left of the connection. */
    tell("again", ask(fd, FIND, "", "x"));
    tell("errno", take(fd, &received));
    return 0;
}
