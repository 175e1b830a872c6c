/* A responder on libfcgi, the C library: what work.py does, as far as it goes in C.
 *
 * libfcgi serves a kept-alive connection in the thread that accepted it, for as long as it lives;
 * so there are more threads than connections, and never one request that waits for a thread.
 *
 * usage: libfcgi PATH THREADS
 */
#define _GNU_SOURCE
#include <fcgiapp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int listener;
static char large[65536];

static void pause_ms(int ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

static void compute_ms(int ms) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    double until = (double)t.tv_sec + (double)t.tv_nsec / 1e9 + ms / 1000.0;
    do {
        for (volatile int i = 0; i < 1000; i++)
            ;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    } while ((double)t.tv_sec + (double)t.tv_nsec / 1e9 < until);
}

static void answer(FCGX_Request *r, const char *body, int size) {
    FCGX_FPrintF(r->out, "Status: 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n",
                 size);
    FCGX_PutStr(body, size, r->out);
}

static void upload(FCGX_Request *r) {
    char buffer[65536], body[32];
    int total = 0, n;
    while ((n = FCGX_GetStr(buffer, sizeof buffer, r->in)) > 0)
        total += n;
    answer(r, body, snprintf(body, sizeof body, "%11d\n", total));
}

static void stream(FCGX_Request *r) {
    FCGX_FPrintF(r->out, "Status: 200 OK\r\nContent-Type: text/plain\r\n"
                         "Content-Length: 1048576\r\n\r\n");
    for (int i = 0; i < 64; i++)
        FCGX_PutStr(large, 16384, r->out);
}

static void serve(FCGX_Request *r) {
    const char *uri = FCGX_GetParam("REQUEST_URI", r->envp);
    int first, second;
    if (!strcmp(uri, "/64k"))
        answer(r, large, sizeof large);
    else if (!strcmp(uri, "/upload"))
        upload(r);
    else if (!strcmp(uri, "/stream"))
        stream(r);
    else {
        if (sscanf(uri, "/wait/%d", &first) == 1)
            pause_ms(first);
        else if (sscanf(uri, "/compute/%d/%d", &first, &second) == 2) {
            compute_ms(first);
            pause_ms(second);
        }
        answer(r, "hello world\n", 12);
    }
}

static void *run(void *unused) {
    FCGX_Request r;
    FCGX_InitRequest(&r, listener, 0);
    while (FCGX_Accept_r(&r) == 0)
        serve(&r);   /* the next accept ends the answer */
    return unused;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return fputs("usage: libfcgi PATH THREADS\n", stderr), 2;
    memset(large, 'x', sizeof large);
    if (FCGX_Init() || (listener = FCGX_OpenSocket(argv[1], 2048)) < 0)
        return perror("libfcgi"), 3;
    for (int i = 1; i < atoi(argv[2]); i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, run, NULL))
            return perror("libfcgi: thread"), 3;
        pthread_detach(thread);
    }
    run(NULL);
}
