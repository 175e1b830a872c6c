/* What load.c says at its end. */
#include <inttypes.h>

typedef struct {
    double wall, cpu;         /* seconds, since the measuring began */
    double rate;
    int never;                /* busy connections without one answer */
    uint64_t least, most;     /* answers on a busy connection */
    uint64_t oldest;          /* ns that the oldest unanswered request of one has waited */
    Latencies all;            /* of all requests of busy connections */
} Totals;

static Totals totals(const Conn *conns, int count, double wall, double cpu) {
    Totals t = {.wall = wall, .cpu = cpu, .least = UINT64_MAX};
    uint64_t at = now_ns();
    for (int i = 0; i < count; i++) {
        const Conn *c = conns + i;
        if (c->kind != BUSY)
            continue;
        t.never += c->served == 0;
        t.least = c->served < t.least ? c->served : t.least;
        t.most = c->served > t.most ? c->served : t.most;
        if (c->in_flight && at - c->began > t.oldest)
            t.oldest = at - c->began;
    }
    for (int i = 0; i < n_requests; i++)
        if (!requests[i].aside)
            add_latencies(&t.all, &requests[i].latencies);
    t.rate = (double)requests_done / wall;
    return t;
}

static void latencies_json(const Latencies *l) {
    printf("\"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, "
           "\"max_us\": %.1f, \"mean_us\": %.1f",
           percentile_us(l, 50), percentile_us(l, 90), percentile_us(l, 99), percentile_us(l, 99.9),
           (double)l->max / 1000, l->count ? (double)l->sum / (double)l->count / 1000 : 0);
}

static void report_json(const Totals *t, int connections) {
    printf("{\"requests\": %" PRIu64 ", \"requests_all\": %" PRIu64 ", \"seconds\": %.3f, "
           "\"rps\": %.1f, \"errors\": %" PRIu64 ", \"first_error\": \"%s\", ",
           requests_done, requests_all, t->wall, t->rate, errors, first_error);
    latencies_json(&t->all);
    printf(", \"connections\": %d, \"never_served\": %d, \"served_least\": %" PRIu64
           ", \"served_most\": %" PRIu64 ", \"oldest_unanswered_us\": %.1f, \"connects\": %" PRIu64
           ", \"connect_retries\": %" PRIu64 ", \"bytes_in\": %" PRIu64 ", \"answer_bytes\": %" PRIu64
           ", \"idle_open\": %d, \"churned\": %" PRIu64
           ", \"load_cpu_share\": %.3f, \"load_cpu_us\": %.2f, \"paths\": [",
           connections, t->never, t->least, t->most, (double)t->oldest / 1000, connects, retries,
           bytes_in, requests[0].answer_size, idle_open, churned, t->cpu / t->wall,
           requests_done ? t->cpu * 1e6 / (double)requests_done : 0);
    for (int i = 0; i < n_requests; i++) {
        const Request *r = requests + i;
        printf("%s{\"path\": \"%s\", \"aside\": %s, \"requests\": %" PRIu64 ", \"rps\": %.1f, ",
               i ? ", " : "", r->path, r->aside ? "true" : "false", r->done,
               (double)r->done / t->wall);
        latencies_json(&r->latencies);
        printf("}");
    }
    printf("]}\n");
}

static void latencies_text(const char *what, const Latencies *l) {
    printf("%s: p50 %.0f us, p90 %.0f us, p99 %.0f us, p99.9 %.0f us, max %.1f ms\n", what,
           percentile_us(l, 50), percentile_us(l, 90), percentile_us(l, 99), percentile_us(l, 99.9),
           (double)l->max / 1e6);
}

static void report_text(const Totals *t, int connections) {
    printf("%.0f requests/s: %" PRIu64 " in %.2f s over %d connections, %s; answers of %" PRIu64
           " bytes\n",
           t->rate, requests_done, t->wall, connections,
           keep ? "kept alive" : "one for each request", requests[0].answer_size);
    latencies_text("latency", &t->all);
    for (int i = 0; n_requests > 1 && i < n_requests; i++) {
        printf("%.0f requests/s of ", (double)requests[i].done / t->wall);
        latencies_text(requests[i].path, &requests[i].latencies);
    }
    printf("errors: %" PRIu64 "%s%s; never served: %d of %d connections (served each: %" PRIu64
           " to %" PRIu64 "); oldest unanswered: %.1f ms; idle: %d\n",
           errors, first_error[0] ? ": first: " : "", first_error, t->never, connections, t->least,
           t->most, (double)t->oldest / 1e6, idle_open);
    printf("load generator: %.0f %% of a core, %.2f us/request%s\n", 100 * t->cpu / t->wall,
           requests_done ? t->cpu * 1e6 / (double)requests_done : 0,
           t->cpu / t->wall > 0.9 ? "; IT IS THE BOTTLENECK" : "");
}
