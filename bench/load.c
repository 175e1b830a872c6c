/* A load generator for FastCGI 1.0 servers: one thread, one epoll, a closed loop per connection.
 *
 * Each connection sends one request, the four records of a GET as nginx sends it in one segment,
 * waits for END_REQUEST, and sends the next one: on the same connection (FCGI_KEEP_CONN), or on
 * a new one (--close), closed here as soon as END_REQUEST has come, as nginx does.
 * What counts as an error: a connection that closes before END_REQUEST, a record that is not
 * FastCGI 1.0 or is not of the request, a protocolStatus other than REQUEST_COMPLETE, a CGI
 * status other than 2xx, a length of STDOUT that differs from the first answer's on that path.
 * The process reports its own CPU time: near 100 % of the wall time it is the bottleneck itself.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
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
#include "load_request.h"
#include "load_conn.h"
#include "load_report.h"

static const double IDLE_WAIT = 10;   /* seconds at most for the idle connections' one answer */

typedef struct {
    int connections, idle, silent;
    int aside;                /* further connections, one kind of request each */
    double seconds, warmup, churn;
    size_t body;
    const char *method;
    char *more[64];
    int n_more;
    bool json;
} Options;

static Conn *conns;
static int n_conns;

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
          "  -x, --mix SHARE=PATH  this share of the requests, such as 0.1, goes there instead\n"
          "  -a, --aside N=PATH    N further connections that ask for nothing else\n"
          "  -P, --param N=V       a further parameter\n"
          "  -i, --idle N          connections held open beside, after one request each (0)\n"
          "  -S, --silent N        connections held open beside, without a request (0)\n"
          "  -R, --churn N         connections opened and closed at once, a second (0)\n"
          "  -C, --cpu N           run on this core\n"
          "  -j, --json            one JSON object instead of text\n"
          "--mix, --aside and --param may be repeated.\n",
          out);
}

static void misused(void) {
    usage(stderr);
    exit(2);
}

static void pin(int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((unsigned)core, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        die("--cpu");
}

static Request *new_request(const char *path) {
    if (n_requests == MAX_REQUESTS)
        misused();
    requests[n_requests].path = path;
    return requests + n_requests++;
}

/* Split NUMBER=PATH. */
static double numbered(char *text, const char **path) {
    char *equals;
    double number = strtod(text, &equals);
    if (*equals != '=' || number <= 0)
        misused();
    *path = equals + 1;
    return number;
}

static void add_conns(int count, Kind kind, Request *request) {
    conns = realloc(conns, (size_t)(n_conns + count + 1) * sizeof *conns);
    if (!conns)
        die("memory");
    memset(conns + n_conns, 0, (size_t)count * sizeof *conns);
    for (int i = n_conns; i < n_conns + count; i++) {
        conns[i].fd = -1;
        conns[i].kind = kind;
        conns[i].request = request;
    }
    n_conns += count;
}

static void parse_option(int c, Options *o) {
    const char *path;
    double number;
    switch (c) {
    case 'c': o->connections = atoi(optarg); break;
    case 's': o->seconds = atof(optarg); break;
    case 'n': limit_requests = strtoull(optarg, NULL, 10); break;
    case 'w': o->warmup = atof(optarg); break;
    case 'k': keep = false; break;
    case 'b': o->body = strtoull(optarg, NULL, 10); break;
    case 'm': o->method = optarg; break;
    case 'p': requests[0].path = optarg; break;
    case 'x':
        number = numbered(optarg, &path);
        new_request(path)->share = number;
        break;
    case 'a':
        number = numbered(optarg, &path);
        Request *r = new_request(path);
        r->aside = true;
        add_conns((int)number, ASIDE, r);
        break;
    case 'P':
        if (o->n_more == 64)
            misused();
        o->more[o->n_more++] = optarg;
        break;
    case 'i': o->idle = atoi(optarg); break;
    case 'S': o->silent = atoi(optarg); break;
    case 'R': o->churn = atof(optarg); break;
    case 'C': pin(atoi(optarg)); break;
    case 'j': o->json = true; break;
    case 'h': usage(stdout); exit(0);
    default: misused();
    }
}

static Options parse_options(int argc, char **argv) {
    static const struct option names[] = {
        {"connections", 1, 0, 'c'}, {"seconds", 1, 0, 's'}, {"requests", 1, 0, 'n'},
        {"warmup", 1, 0, 'w'},      {"close", 0, 0, 'k'},   {"body", 1, 0, 'b'},
        {"method", 1, 0, 'm'},      {"path", 1, 0, 'p'},    {"mix", 1, 0, 'x'},
        {"aside", 1, 0, 'a'},       {"param", 1, 0, 'P'},   {"idle", 1, 0, 'i'},
        {"silent", 1, 0, 'S'},      {"churn", 1, 0, 'R'},   {"cpu", 1, 0, 'C'},
        {"json", 0, 0, 'j'},        {"help", 0, 0, 'h'},    {0, 0, 0, 0}};
    Options o = {.connections = 32, .seconds = 3, .warmup = 0.3};
    int c;
    new_request("/");
    while ((c = getopt_long(argc, argv, "c:s:n:w:kb:m:p:x:a:P:i:S:R:C:jh", names, NULL)) != -1)
        parse_option(c, &o);
    if (optind != argc - 1 || o.connections < 1 || o.seconds <= 0)
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
    for (int i = 0; i < n_requests; i++)
        build_request(requests + i, o->method, o->body, keep, o->more, o->n_more);
    add_conns(o->idle, IDLE, NULL);
    add_conns(o->silent, SILENT, NULL);
    add_conns(o->connections, BUSY, NULL);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0)
        die("start");
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
    static uint64_t next;
    if (now_ns() < next)
        return;
    for (int i = 0; i < n_conns; i++)
        if (conns[i].fd < 0 && conns[i].connected_late)
            open_connection(conns + i);
    next = now_ns() + 2000000;
}

/* Have all idle connections get their answer, a few at a time: a server that cannot have so many
 * at once is not to be called slow for the crowd at the door. */
static void open_idle(int first, int count) {
    uint64_t until = now_ns() + (uint64_t)(IDLE_WAIT * 1e9);
    int opened = 0, waiting = 0;
    while ((opened < count || waiting) && now_ns() < until) {
        for (; opened < count && waiting < 64; opened++, waiting++)
            open_connection(conns + first + opened);
        turn();
        connect_again();
        waiting = 0;
        for (int i = 0; i < opened; i++)
            waiting += !conns[first + i].served;
    }
}

static void churn(double rate, uint64_t began) {
    double due = (double)(now_ns() - began) / 1e9 * rate;
    for (int i = 0; (double)churned < due && i < 64; i++, churned++) {
        int fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0)
            die("socket");
        if (connect(fd, (struct sockaddr *)&address, address_size))
            retries++;   /* counted, and not tried again: who churns does not wait */
        close(fd);
    }
}

static double cpu_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv) {
    Options o = parse_options(argc, argv);
    prepare(&o);
    int first_idle = n_conns - o.connections - o.silent - o.idle;
    open_idle(first_idle, o.idle);
    uint64_t began = now_ns(), measured_from = began;
    uint64_t until = began + (uint64_t)((o.warmup + o.seconds) * 1e9);
    double cpu_began = cpu_seconds();
    measuring = o.warmup <= 0;
    for (int i = 0; i < n_conns; i++)
        if (conns[i].kind != IDLE)
            open_connection(conns + i);
    while (!stopping) {
        turn();
        connect_again();
        churn(o.churn, began);
        uint64_t now = now_ns();
        if (!measuring && now >= began + (uint64_t)(o.warmup * 1e9)) {
            measuring = true;
            measured_from = now;
            cpu_began = cpu_seconds();
            bytes_in = connects = retries = 0;
        }
        stopping = now >= until || (limit_requests && requests_all >= limit_requests);
    }
    Totals t = totals(conns, n_conns, (double)(now_ns() - measured_from) / 1e9,
                      cpu_seconds() - cpu_began);
    if (o.json)
        report_json(&t, o.connections);
    else
        report_text(&t, o.connections);
    return errors ? 1 : 0;
}
