/* A load generator for FastCGI 1.0 servers: one thread, one epoll, a closed loop per connection.
 *
 * Each connection sends one request, the four records of a GET as nginx sends it in one segment,
 * waits for END_REQUEST, and sends the next one: on the same connection (FCGI_KEEP_CONN), or on
 * a new one (--close), closed here as soon as END_REQUEST has come, as nginx does.
 * What counts as an error: a connection that closes before END_REQUEST, a record that is not
 * FastCGI 1.0 or is not of the request, a protocolStatus other than REQUEST_COMPLETE, a CGI
 * status other than 2xx, a length of STDOUT that differs from the first answer's.
 * The process reports its own CPU time: near 100 % of the wall time it is the bottleneck itself.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "load_endpoint.h"
#include "load_latency.h"
#include "load_request.h"

typedef struct {
    int fd;
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
static Conn *conns;
static int connections = 32;
static uint64_t requests_done, requests_all, limit_requests, errors, bytes_in, connects, retries;
static uint64_t expected_size;
static bool expected_known, measuring, stopping;
static char first_error[160];

/* ---- connections ---- */

static void failed(Conn *c, const char *why);
static void send_more(Conn *c);

static void watch(Conn *c, bool write) {
    struct epoll_event e = {.events = EPOLLIN | (write ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e))
        die("epoll_ctl");
    c->wants_write = write;
}

static void start_request(Conn *c) {
    if (stopping || (limit_requests && requests_all + 1 > limit_requests)) {
        c->in_flight = false;
        return;
    }
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
    errors++;
    if (!first_error[0])
        snprintf(first_error, sizeof first_error, "%s", why);
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->in_flight = false;
    c->connected_late = true;   /* not at once: a server that only refuses would be hammered */
}

static void send_more(Conn *c) {
    while (c->written < request_size) {
        ssize_t n = send(c->fd, request + c->written, request_size - c->written, MSG_NOSIGNAL);
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

static void ended(Conn *c) {
    requests_all++;
    if (measuring) {
        requests_done++;
        c->served++;
        count_latency(now_ns() - c->began);
    }
    if (!expected_known) {
        expected_known = true;
        expected_size = c->answer_size;
    } else if (c->answer_size != expected_size) {
        failed(c, "an answer of another length than the first");
        return;
    }
    if (c->end[4]) {
        failed(c, "a protocolStatus other than REQUEST_COMPLETE");
        return;
    }
    if (!c->head_checked || memcmp(c->head, "Status: 2", 9)) {
        failed(c, "a status other than 2xx");
        return;
    }
    if (keep && c->written == request_size) {
        start_request(c);
        return;
    }
    close(c->fd);   /* also after an early answer to a body that was not all sent, as nginx does */
    c->fd = -1;
    c->in_flight = false;
    if (!stopping)
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
            if (c->in_flight || keep)
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

/* ---- main ---- */

static void usage(FILE *out) {
    fputs("usage: load [options] unix:PATH | tcp:HOST:PORT\n"
          "  -c, --connections N   connections, each with one request at a time (32)\n"
          "  -s, --seconds S       how long to measure (3)\n"
          "  -n, --requests N      end after N requests instead (no warm-up)\n"
          "  -w, --warmup S        seconds before the measuring begins (0.3)\n"
          "  -k, --close           a new connection for each request (default: kept alive)\n"
          "  -b, --body BYTES      size of the request body; makes the method POST (0)\n"
          "  -m, --method M        request method\n"
          "  -p, --path PATH       request path and query (/)\n"
          "  -P, --param N=V       a further parameter; may be repeated\n"
          "  -i, --idle N          connections held open beside, without a request (0)\n"
          "  -C, --cpu N           run on this core\n"
          "  -j, --json            one JSON object instead of text\n",
          out);
}

static double cpu_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void open_idle(int count) {
    for (int i = 0; i < count; i++) {
        int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, address_size))
            die("idle connection");
    }
}

static void report(bool json, double wall, double cpu) {
    int never = 0;
    uint64_t at = now_ns(), oldest = 0, least = UINT64_MAX, most = 0;
    for (int i = 0; i < connections; i++) {
        Conn *c = conns + i;
        never += c->served == 0;
        least = c->served < least ? c->served : least;
        most = c->served > most ? c->served : most;
        if (c->in_flight && at - c->began > oldest)
            oldest = at - c->began;
    }
    double rate = (double)requests_done / wall;
    double mean = requests_done ? (double)latency_sum / (double)requests_done / 1000 : 0;
    if (json) {
        printf("{\"requests\": %" PRIu64 ", \"requests_all\": %" PRIu64
               ", \"seconds\": %.3f, \"rps\": %.1f, \"errors\": %" PRIu64
               ", \"first_error\": \"%s\", \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, "
               "\"p999_us\": %.1f, \"max_us\": %.1f, \"mean_us\": %.1f, \"connections\": %d, "
               "\"never_served\": %d, \"served_least\": %" PRIu64 ", \"served_most\": %" PRIu64
               ", \"oldest_unanswered_us\": %.1f, \"connects\": %" PRIu64 ", \"connect_retries\": %"
               PRIu64 ", \"bytes_in\": %" PRIu64 ", \"answer_bytes\": %" PRIu64
               ", \"load_cpu_share\": %.3f, \"load_cpu_us\": %.2f}\n",
               requests_done, requests_all, wall, rate, errors, first_error, percentile_us(50),
               percentile_us(90), percentile_us(99), percentile_us(99.9), (double)latency_max / 1000, mean, connections,
               never, least, most, (double)oldest / 1000, connects, retries, bytes_in, expected_size,
               cpu / wall, requests_done ? cpu * 1e6 / (double)requests_done : 0);
        return;
    }
    printf("%.0f requests/s: %" PRIu64 " in %.2f s over %d connections, %s; answers of %" PRIu64
           " bytes\n",
           rate, requests_done, wall, connections, keep ? "kept alive" : "one for each request",
           expected_size);
    printf("latency: p50 %.0f us, p90 %.0f us, p99 %.0f us, p99.9 %.0f us, max %.1f ms\n",
           percentile_us(50), percentile_us(90), percentile_us(99), percentile_us(99.9),
           (double)latency_max / 1e6);
    printf("errors: %" PRIu64 "%s%s; never served: %d of %d connections (served each: %" PRIu64
           " to %" PRIu64 "); oldest unanswered: %.1f ms\n",
           errors, first_error[0] ? ": first: " : "", first_error, never, connections, least, most,
           (double)oldest / 1e6);
    printf("load generator: %.0f %% of a core, %.2f us/request%s\n", 100 * cpu / wall,
           requests_done ? cpu * 1e6 / (double)requests_done : 0,
           cpu / wall > 0.9 ? "; IT IS THE BOTTLENECK" : "");
}

typedef struct {
    double seconds, warmup;
    size_t body;
    const char *method, *path;
    char *more[64];
    int n_more, idle;
    bool json;
} Options;

static void pin(int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((unsigned)core, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        die("--cpu");
}

static void misused(void) {
    usage(stderr);
    exit(2);
}

static Options parse_options(int argc, char **argv) {
    static const struct option names[] = {
        {"connections", 1, 0, 'c'}, {"seconds", 1, 0, 's'}, {"requests", 1, 0, 'n'},
        {"warmup", 1, 0, 'w'},      {"close", 0, 0, 'k'},   {"body", 1, 0, 'b'},
        {"method", 1, 0, 'm'},      {"path", 1, 0, 'p'},    {"param", 1, 0, 'P'},
        {"idle", 1, 0, 'i'},        {"cpu", 1, 0, 'C'},     {"json", 0, 0, 'j'},
        {"help", 0, 0, 'h'},        {0, 0, 0, 0}};
    Options o = {.seconds = 3, .warmup = 0.3, .path = "/"};
    int c;
    while ((c = getopt_long(argc, argv, "c:s:n:w:kb:m:p:P:i:C:jh", names, NULL)) != -1) {
        switch (c) {
        case 'c': connections = atoi(optarg); break;
        case 's': o.seconds = atof(optarg); break;
        case 'n': limit_requests = strtoull(optarg, NULL, 10); break;
        case 'w': o.warmup = atof(optarg); break;
        case 'k': keep = false; break;
        case 'b': o.body = strtoull(optarg, NULL, 10); break;
        case 'm': o.method = optarg; break;
        case 'p': o.path = optarg; break;
        case 'P':
            if (o.n_more == 64)
                misused();
            o.more[o.n_more++] = optarg;
            break;
        case 'i': o.idle = atoi(optarg); break;
        case 'C': pin(atoi(optarg)); break;
        case 'j': o.json = true; break;
        case 'h': usage(stdout); exit(0);
        default: misused();
        }
    }
    if (optind != argc - 1 || connections < 1 || o.seconds <= 0)
        misused();
    if (!o.method)
        o.method = o.body ? "POST" : "GET";
    if (limit_requests) {
        o.warmup = 0;
        o.seconds = 3600;
    }
    parse_endpoint(argv[optind]);
    return o;
}

static void prepare(Options *o) {
    struct rlimit files;
    signal(SIGPIPE, SIG_IGN);
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    build_request(o->method, o->path, o->body, keep, o->more, o->n_more);
    poller = epoll_create1(EPOLL_CLOEXEC);
    conns = calloc((size_t)connections, sizeof *conns);
    if (poller < 0 || !conns)
        die("start");
    open_idle(o->idle);
}

/* Wait once, and act on what is ready. */
static void turn(void) {
    struct epoll_event events[512];
    int n = epoll_wait(poller, events, 512, 2);
    if (n < 0 && errno != EINTR)
        die("epoll_wait");
    for (int i = 0; i < n; i++) {
        Conn *c = events[i].data.ptr;
        if (c->fd < 0)
            continue;
        if (events[i].events & EPOLLOUT && c->in_flight)
            send_more(c);
        if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
            readable(c);
    }
}

static void connect_again(void) {
    for (int i = 0; i < connections; i++)
        if (conns[i].fd < 0 && conns[i].connected_late)
            open_connection(conns + i);
}

int main(int argc, char **argv) {
    Options o = parse_options(argc, argv);
    prepare(&o);
    uint64_t began = now_ns(), measured_from = began, next_retry = began;
    uint64_t until = began + (uint64_t)((o.warmup + o.seconds) * 1e9);
    double cpu_began = cpu_seconds();
    measuring = o.warmup <= 0;
    for (int i = 0; i < connections; i++) {
        conns[i].fd = -1;
        open_connection(conns + i);
    }
    while (!stopping) {
        turn();
        uint64_t now = now_ns();
        if (now >= next_retry) {
            connect_again();
            next_retry = now + 2000000;
        }
        if (!measuring && now >= began + (uint64_t)(o.warmup * 1e9)) {
            measuring = true;
            measured_from = now;
            cpu_began = cpu_seconds();
            bytes_in = connects = retries = 0;
        }
        stopping = now >= until || (limit_requests && requests_all >= limit_requests);
    }
    report(o.json, (double)(now_ns() - measured_from) / 1e9, cpu_seconds() - cpu_began);
    return errors ? 1 : 0;
}
