/*
 * A server: accepts from the listening socket FD until it has served COUNT clients, and echoes to all
 * of them at once. One line for each connection that comes or goes: the call, errno, the number.
 *
 *     echo FD COUNT
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 32

static _Noreturn void fail(const char *call) {
    printf("%s %d -1\n", call, errno);
    fflush(stdout);
    exit(1);
}

static int echo(int fd) {
    static char buffer[65536];
    ssize_t count = recv(fd, buffer, sizeof buffer, 0);

    if (count < 0) {
        fail("recv");
    }
    for (ssize_t done = 0; done < count;) {
        ssize_t sent = send(fd, buffer + done, (size_t)(count - done), 0);

        if (sent < 0) {
            fail("send");
        }
        done += sent;
    }
    return count > 0;
}

int main(int argc, char **argv) {
    struct pollfd polled[1 + MOST];
    nfds_t count = 1;
    int served = 0, clients;

    if (argc != 3) {
        fputs("usage: echo FD COUNT\n", stderr);
        return 2;
    }
    polled[0] = (struct pollfd){.fd = atoi(argv[1]), .events = POLLRDNORM};
    clients = atoi(argv[2]);

    while (served < clients) {
        if (poll(polled, count, -1) < 0) {
            fail("poll");
        }
        for (nfds_t i = count; i-- > 1;) {
            if (polled[i].revents != 0 && !echo(polled[i].fd)) {
                int closed = close(polled[i].fd);

                printf("close %d %d\n", closed == 0 ? 0 : errno, polled[i].fd);
                polled[i] = polled[--count];
                served++;
            }
        }
        if (polled[0].revents != 0 && count <= MOST) {
            int fd = accept(polled[0].fd, NULL, NULL);

            if (fd < 0) {
                fail("accept");
            }
            printf("accept 0 %d\n", fd);
            polled[count++] = (struct pollfd){.fd = fd, .events = POLLRDNORM};
        }
    }
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
