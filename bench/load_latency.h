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
static uint64_t histogram[64 * SUB];
static uint64_t latency_max, latency_sum;

static void count_latency(uint64_t ns) {
    int shift = 0;
    uint64_t v = ns;
    while (v >= 2 * SUB) {
        v >>= 1;
        shift++;
    }
    histogram[shift * SUB + v]++;   /* v < 2*SUB: shift 0 takes 128 buckets, each further 64 */
    latency_sum += ns;
    if (ns > latency_max)
        latency_max = ns;
}

static double percentile_us(double p) {
    uint64_t total = 0, seen = 0;
    for (int i = 0; i < 64 * SUB; i++)
        total += histogram[i];
    if (!total)
        return 0;
    uint64_t rank = (uint64_t)(p / 100.0 * (double)total);
    if (rank >= total)
        rank = total - 1;
    for (int i = 0; i < 64 * SUB; i++) {
        seen += histogram[i];
        if (seen > rank) {
            int shift = i < 2 * SUB ? 0 : i / SUB - 1;
            double low = i < 2 * SUB ? i : (double)((uint64_t)(i - shift * SUB) << shift);
            return (low + (double)(1ull << shift) / 2) / 1000.0;
        }
    }
    return 0;
}
