/* The clock of load.c, and its histogram of latencies. */
#include <stdint.h>
#include <time.h>

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Latencies: 64 buckets for each power of two, so a value is off by at most 1.6 %. */
#define SUB 64

typedef struct {
    uint64_t count, max, sum;
    uint64_t buckets[64 * SUB];
} Latencies;

static void count_latency(Latencies *l, uint64_t ns) {
    int shift = 0;
    uint64_t v = ns;
    while (v >= 2 * SUB) {
        v >>= 1;
        shift++;
    }
    l->buckets[shift * SUB + v]++;   /* v < 2*SUB: shift 0 takes 128 buckets, each further 64 */
    l->count++;
    l->sum += ns;
    if (ns > l->max)
        l->max = ns;
}

static double percentile_us(const Latencies *l, double p) {
    uint64_t seen = 0, rank = (uint64_t)(p / 100.0 * (double)l->count);
    if (!l->count)
        return 0;
    if (rank >= l->count)
        rank = l->count - 1;
    for (int i = 0; i < 64 * SUB; i++) {
        seen += l->buckets[i];
        if (seen > rank) {
            int shift = i < 2 * SUB ? 0 : i / SUB - 1;
            double low = i < 2 * SUB ? i : (double)((uint64_t)(i - shift * SUB) << shift);
            return (low + (double)(1ull << shift) / 2) / 1000.0;
        }
    }
    return 0;
}

static void add_latencies(Latencies *to, const Latencies *from) {
    to->count += from->count;
    to->sum += from->sum;
    to->max = from->max > to->max ? from->max : to->max;
    for (int i = 0; i < 64 * SUB; i++)
        to->buckets[i] += from->buckets[i];
}
