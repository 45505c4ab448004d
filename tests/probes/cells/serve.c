/*
 * A server that knows no number: it finds its listening sockets in the environment, one in each
 * WW_FD_<NAME>, serves CLIENTS clients one after the other, and ends. Each client is told the
 * variable's name and the number, and then gets back what it sends until it sends no more.
 *
 *     serve CLIENTS
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 16
#define PREFIX "WW_FD_"

extern char **environ;

static _Noreturn void fail(const char *call) {
    fprintf(stderr, "serve: %s: %s\n", call, strerror(errno));
    exit(1);
}

static void send_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        ssize_t sent = send(fd, data, size, 0);

        if (sent < 0) {
            fail("send");
        }
        data += sent;
        size -= (size_t)sent;
    }
}

static void serve(int listener, const char *variable) {
    static char buffer[65536];
    ssize_t count;
    int client = accept(listener, NULL, NULL);

    if (client < 0) {
        fail("accept");
    }
    send_all(client, variable, strlen(variable));
    send_all(client, "\n", 1);
    while ((count = recv(client, buffer, sizeof buffer, 0)) > 0) {
        send_all(client, buffer, (size_t)count);
    }
    if (count < 0) {
        fail("recv");
    }
    close(client);
}

int main(int argc, char **argv) {
    struct pollfd polled[MOST];
    const char *variables[MOST];
    nfds_t count = 0;
    int clients;

    if (argc != 2) {
        fputs("usage: serve CLIENTS\n", stderr);
        return 2;
    }
    clients = atoi(argv[1]);
    for (char **variable = environ; *variable != NULL && count < MOST; variable++) {
        if (strncmp(*variable, PREFIX, strlen(PREFIX)) == 0) {
            polled[count] = (struct pollfd){
                .fd = atoi(strchr(*variable, '=') + 1),
                .events = POLLRDNORM,
            };
            variables[count++] = *variable;
        }
    }
    if (count == 0) {
        fputs("serve: grant me a listening socket\n", stderr);
        return 2;
    }
    while (clients > 0) {
        if (poll(polled, count, -1) < 0) {
            fail("poll");
        }
        for (nfds_t i = 0; i < count && clients > 0; i++) {
            if (polled[i].revents != 0) {
                serve(polled[i].fd, variables[i]);
                clients--;
            }
        }
    }
    return 0;
}
