/* A connection of load.c: what it sends, and how it checks what it receives. */
#include <netinet/tcp.h>
#include <sys/epoll.h>

typedef enum {
    BUSY,     /* one request after the other, of the kinds that have a share */
    ASIDE,    /* one after the other too, of a kind of its own */
    IDLE,     /* one request, then it is only held open */
    SILENT    /* none at all */
} Kind;

typedef struct {
    int fd;
    Kind kind;
    Request *request;         /* in flight; of ASIDE always the same */
    bool connected_late;      /* to be tried again: the accept queue was full */
    bool wants_write;         /* EPOLLOUT is on */
    bool in_flight;
    bool head_checked;
    uint64_t began;           /* ns: when the request's first byte was offered */
    uint64_t served;          /* requests answered since the measuring began */
    size_t written;           /* bytes of the request already taken by the socket */
    unsigned char header[8];  /* of the record that is being read */
    int header_have;
    unsigned content_left, padding_left;
    unsigned char end[8];     /* body of END_REQUEST */
    int end_have;
    uint64_t answer_size;     /* bytes of STDOUT */
    char head[16];            /* first bytes of STDOUT */
    unsigned head_have;
} Conn;

static bool keep = true;
static int poller;
static uint64_t requests_done, requests_all, limit_requests, errors, bytes_in, connects, retries;
static int idle_open;         /* idle connections that had their answer, and are still open */
static uint64_t churned;      /* connections that were opened and closed at once */
static bool measuring, stopping;
static char first_error[160];

static void failed(Conn *c, const char *why);
static void send_more(Conn *c);

static void watch(Conn *c, bool write) {
    struct epoll_event e = {.events = EPOLLIN | (write ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e))
        die("epoll_ctl");
    c->wants_write = write;
}

/* Choose what a busy connection asks for next. */
static Request *next_request(void) {
    static uint64_t state = 88172645463325252u;   /* xorshift64: the same choices in each run */
    if (n_requests == 1)
        return requests;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    double point = (double)(state >> 11) / (double)(1ull << 53);
    for (int i = 1; i < n_requests; i++)
        if ((point -= requests[i].share) < 0)
            return requests + i;
    return requests;
}

static void start_request(Conn *c) {
    if (c->kind == SILENT || (c->kind == IDLE && c->served))
        return;
    if (stopping || (limit_requests && requests_all + 1 > limit_requests)) {
        c->in_flight = false;
        return;
    }
    if (c->kind != ASIDE)
        c->request = c->kind == BUSY ? next_request() : requests;
    c->in_flight = true;
    c->written = 0;
    c->header_have = c->end_have = 0;
    c->content_left = c->padding_left = 0;
    c->answer_size = 0;
    c->head_have = 0;
    c->head_checked = false;
    if (keep)
        c->began = now_ns();
    send_more(c);
}

static void open_connection(Conn *c) {
    if (!keep || !c->connected_late)
        c->began = now_ns();
    c->connected_late = false;
    c->wants_write = false;
    c->fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket");
    if (is_tcp) {
        int one = 1;
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    connects++;
    if (connect(c->fd, (struct sockaddr *)&address, address_size) && errno != EINPROGRESS) {
        if (errno != EAGAIN && errno != ECONNREFUSED)
            die("connect");
        close(c->fd);   /* the accept queue is full: again in a moment */
        c->fd = -1;
        c->connected_late = true;
        retries++;
        return;
    }
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e))
        die("epoll_ctl");
    start_request(c);
}

static void failed(Conn *c, const char *why) {
    if (c->kind == IDLE || c->kind == SILENT) {
        if (c->served) {   /* a server may close what is idle: it is told by idle_open */
            idle_open--;
            close(c->fd);
            c->fd = -1;
            c->in_flight = false;
            return;
        }
    } else {
        errors++;
        if (!first_error[0])
            snprintf(first_error, sizeof first_error, "%s", why);
    }
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->in_flight = false;
    c->connected_late = true;   /* not at once: a server that only refuses would be hammered */
}

static void send_more(Conn *c) {
    while (c->written < c->request->size) {
        Request *r = c->request;
        ssize_t n = send(c->fd, r->data + c->written, r->size - c->written, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            if (errno == EAGAIN || errno == ENOTCONN) {
                if (!c->wants_write)
                    watch(c, true);
                return;
            }
            if (errno == EPIPE)
                break;   /* an early answer may still wait to be read */
            failed(c, "send failed");
            return;
        }
        c->written += (size_t)n;
    }
    if (c->wants_write)
        watch(c, false);
}

static void count(Conn *c) {
    Request *r = c->request;
    requests_all++;
    if (c->kind == IDLE) {
        c->served++;
        idle_open++;
    } else if (measuring) {
        r->done++;
        c->served++;
        count_latency(&r->latencies, now_ns() - c->began);
        if (c->kind == BUSY)
            requests_done++;
    }
}

static void ended(Conn *c) {
    Request *r = c->request;
    count(c);
    if (!r->answered) {
        r->answered = true;
        r->answer_size = c->answer_size;
    } else if (c->answer_size != r->answer_size) {
        failed(c, "an answer of another length than the first");
        return;
    }
    if (c->end[4]) {
        failed(c, "a protocolStatus other than REQUEST_COMPLETE");
        return;
    }
    /* Without a status it is 200 (RFC 3875, 6.3.3), which is how PHP says it. */
    if (!c->head_checked || (!memcmp(c->head, "Status: ", 8) && c->head[8] != '2')) {
        failed(c, "a status other than 2xx");
        return;
    }
    if (keep && c->written == r->size) {
        c->in_flight = false;
        start_request(c);
        return;
    }
    if (c->kind == IDLE)
        idle_open--;
    close(c->fd);   /* also after an early answer to a body that was not all sent, as nginx does */
    c->fd = -1;
    c->in_flight = false;
    if (!stopping && c->kind != IDLE)
        open_connection(c);
}

/* Take received bytes. False when the connection failed, or its request ended (the rest is void). */
static bool take(Conn *c, const unsigned char *p, size_t n) {
    while (n) {
        if (c->header_have < 8) {
            size_t part = (size_t)(8 - c->header_have) < n ? (size_t)(8 - c->header_have) : n;
            memcpy(c->header + c->header_have, p, part);
            c->header_have += (int)part;
            p += part;
            n -= part;
            if (c->header_have < 8)
                break;
            c->content_left = (unsigned)c->header[4] << 8 | c->header[5];
            c->padding_left = c->header[6];
            int type = c->header[1];
            if (c->header[0] != 1 || c->header[2] || c->header[3] != 1 ||
                (type != STDOUT && type != STDERR && type != END_REQUEST) ||
                (type == END_REQUEST && c->content_left != 8)) {
                failed(c, "a record that does not belong here");
                return false;
            }
        }
        if (c->content_left) {
            size_t part = c->content_left < n ? c->content_left : n;
            if (c->header[1] == STDOUT) {
                if (c->head_have < sizeof c->head) {
                    size_t room = sizeof c->head - c->head_have;
                    size_t some = part < room ? part : room;
                    memcpy(c->head + c->head_have, p, some);
                    c->head_have += (unsigned)some;
                    c->head_checked = c->head_have >= 9;
                }
                c->answer_size += part;
            } else if (c->header[1] == END_REQUEST) {
                memcpy(c->end + c->end_have, p, part);
                c->end_have += (int)part;
            }
            c->content_left -= (unsigned)part;
            p += part;
            n -= part;
        }
        if (!c->content_left && c->padding_left) {
            size_t part = c->padding_left < n ? c->padding_left : n;
            c->padding_left -= (unsigned)part;
            p += part;
            n -= part;
        }
        if (!c->content_left && !c->padding_left) {
            bool end = c->header[1] == END_REQUEST;
            c->header_have = 0;
            if (end) {
                if (n && keep) {
                    failed(c, "bytes after END_REQUEST");
                    return false;
                }
                ended(c);
                return false;
            }
        }
    }
    return true;
}

static void readable(Conn *c) {
    static unsigned char buffer[262144];
    for (;;) {
        ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            if (errno == EAGAIN)
                return;
            failed(c, "recv failed");
            return;
        }
        if (n == 0) {
            if (c->in_flight || keep || c->kind != BUSY)
                failed(c, c->in_flight ? "closed before END_REQUEST" : "closed while idle");
            return;
        }
        bytes_in += (uint64_t)n;
        if (!c->in_flight) {
            failed(c, "bytes without a request");
            return;
        }
        if (!take(c, buffer, (size_t)n) || (size_t)n < sizeof buffer)
            return;
    }
}
