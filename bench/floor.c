/* The floor: the least that a FastCGI responder can do for 12 bytes, in C, in one epoll loop.
 *
 * It reads the records of a request for their lengths alone, up to the end of STDIN, decodes no
 * parameter, and answers all with the same bytes by one send. One thread, nothing allocated for
 * a request, no error handling beyond closing the connection. It shows what the kernel, the
 * web server and the load generator cost by themselves; it is not a server.
 *
 * usage: floor PATH
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BEGIN_REQUEST = 1, END_REQUEST = 3, STDIN = 5, STDOUT = 6 };

typedef struct {
    int fd;
    bool keep;
    unsigned have;                /* bytes of the header and of BEGIN_REQUEST's body read */
    unsigned char head[16];
    unsigned skip;                /* bytes of content and padding to pass over */
} Conn;

static unsigned char answer[256];
static size_t answer_size;

static void record(int type, const char *data, size_t n) {
    unsigned char h[8] = {1, (unsigned char)type, 0, 1, (unsigned char)(n >> 8), (unsigned char)n};
    memcpy(answer + answer_size, h, 8);
    memcpy(answer + answer_size + 8, data, n);
    answer_size += 8 + n;
}

/* Take bytes; give the count of requests that ended in them, -1 for what is not FastCGI. */
static int take(Conn *c, const unsigned char *p, size_t n) {
    int ended = 0;
    while (n) {
        if (c->skip) {
            size_t part = c->skip < n ? c->skip : n;
            c->skip -= (unsigned)part;
            p += part;
            n -= part;
            continue;
        }
        c->head[c->have++] = *p++;
        n--;
        if (c->have < 8)
            continue;
        unsigned length = (unsigned)c->head[4] << 8 | c->head[5];
        if (c->head[0] != 1)
            return -1;
        if (c->head[1] == BEGIN_REQUEST) {
            if (c->have < 16)
                continue;
            c->keep = c->head[10] & 1;
            length = 0;
        }
        ended += c->head[1] == STDIN && length == 0;
        c->skip = length + c->head[6];
        c->have = 0;
    }
    return ended;
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path)
        return fputs("usage: floor PATH\n", stderr), 2;
    strcpy(address.sun_path, argv[1]);
    record(STDOUT, "Status: 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n\r\n"
                   "hello world\n", 76);
    record(STDOUT, "", 0);
    record(END_REQUEST, "\0\0\0\0\0\0\0\0", 8);
    signal(SIGPIPE, SIG_IGN);
    unlink(argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 2048))
        return perror("floor"), 3;
    int poller = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, events[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    static unsigned char buffer[65536];
    for (;;) {
        int n = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < n; i++) {
            Conn *c = events[i].data.ptr;
            if (!c) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    c = calloc(1, sizeof *c);
                    c->fd = fd;
                    e.data.ptr = c;
                    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
                }
                continue;
            }
            ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
            if (got < 0 && (errno == EAGAIN || errno == EINTR))
                continue;
            int ended = got > 0 ? take(c, buffer, (size_t)got) : -1;
            bool close_it = ended < 0;
            for (; ended > 0; ended--)
                close_it |= send(c->fd, answer, answer_size, 0) != (ssize_t)answer_size || !c->keep;
            if (close_it) {
                close(c->fd);
                free(c);
            }
        }
    }
}
