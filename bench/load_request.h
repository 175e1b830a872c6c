/* The requests that load.c sends, each put into wire form once, and what it counts of each. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load_latency.h"

enum { BEGIN_REQUEST = 1, END_REQUEST = 3, PARAMS = 4, STDIN = 5, STDOUT = 6, STDERR = 7 };

typedef struct {
    const char *path;
    double share;             /* of the busy connections' requests */
    bool aside;               /* sent by connections of its own, beside the busy ones */
    unsigned char *data;
    size_t size;
    uint64_t answer_size;     /* bytes of STDOUT in the first answer */
    bool answered;
    uint64_t done;            /* answers since the measuring began */
    Latencies latencies;
} Request;

enum { MAX_REQUESTS = 16 };
static Request requests[MAX_REQUESTS];
static int n_requests;

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(3);
}

static void put(Request *r, const void *data, size_t n) {
    unsigned char *grown = realloc(r->data, r->size + n + 1);
    if (!grown)
        die("memory");
    memcpy(grown + r->size, data, n);
    r->data = grown;
    r->size += n;
}

static void put_record(Request *r, int type, const void *data, size_t n) {
    unsigned char h[8] = {1, (unsigned char)type, 0, 1, (unsigned char)(n >> 8),
                          (unsigned char)(n & 255), 0, 0};
    put(r, h, 8);
    put(r, data, n);
}

static unsigned char params[65536];
static size_t params_size;

static void param(const char *name, const char *value) {
    size_t a = strlen(name), b = strlen(value);
    if (params_size + a + b + 8 > 65535) {
        fprintf(stderr, "load: the parameters are too long\n");
        exit(2);
    }
    params[params_size++] = (unsigned char)a;
    if (b < 128) {
        params[params_size++] = (unsigned char)b;
    } else {
        params[params_size++] = (unsigned char)(b >> 24 | 0x80);
        params[params_size++] = (unsigned char)(b >> 16);
        params[params_size++] = (unsigned char)(b >> 8);
        params[params_size++] = (unsigned char)b;
    }
    memcpy(params + params_size, name, a);
    memcpy(params + params_size + a, value, b);
    params_size += a + b;
}

/* The parameters of Debian's fastcgi_params, and the headers that a browser sends. */
static void usual_params(const char *method, const char *path, size_t body) {
    char length[32], script[2048];
    const char *query = strchr(path, '?');
    snprintf(length, sizeof length, "%zu", body);
    snprintf(script, sizeof script, "%.*s", (int)(query ? query - path : (long)strlen(path)), path);
    param("QUERY_STRING", query ? query + 1 : "");
    param("REQUEST_METHOD", method);
    param("CONTENT_TYPE", body ? "application/octet-stream" : "");
    param("CONTENT_LENGTH", body ? length : "");
    param("SCRIPT_NAME", script);
    param("REQUEST_URI", path);
    param("DOCUMENT_URI", script);
    param("DOCUMENT_ROOT", "/usr/share/nginx/html");
    param("SERVER_PROTOCOL", "HTTP/1.1");
    param("REQUEST_SCHEME", "http");
    param("GATEWAY_INTERFACE", "CGI/1.1");
    param("SERVER_SOFTWARE", "nginx/1.22.1");
    param("REMOTE_ADDR", "127.0.0.1");
    param("REMOTE_PORT", "40000");
    param("SERVER_ADDR", "127.0.0.1");
    param("SERVER_PORT", "8000");
    param("SERVER_NAME", "localhost");
    param("REDIRECT_STATUS", "200");
    param("HTTP_HOST", "localhost:8000");
    param("HTTP_USER_AGENT", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0");
    param("HTTP_ACCEPT", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");
    param("HTTP_ACCEPT_LANGUAGE", "en-US,en;q=0.5");
    param("HTTP_ACCEPT_ENCODING", "gzip, deflate");
    param("HTTP_CONNECTION", "keep-alive");
}

static void put_body(Request *r, size_t body) {
    static unsigned char chunk[32768];   /* what nginx puts into one record of STDIN */
    memset(chunk, 'x', sizeof chunk);
    for (size_t left = body; left;) {
        size_t part = left < sizeof chunk ? left : sizeof chunk;
        put_record(r, STDIN, chunk, part);
        left -= part;
    }
    put_record(r, STDIN, "", 0);
}

/* `more`: further parameters, each NAME=VALUE. */
static void build_request(Request *r, const char *method, size_t body, bool keep, char **more,
                          int n) {
    unsigned char begin[8] = {0, 1, keep ? 1 : 0, 0, 0, 0, 0, 0};
    params_size = 0;
    usual_params(method, r->path, body);
    for (int i = 0; i < n; i++) {
        char *equals = strchr(more[i], '=');
        if (!equals || equals - more[i] > 127) {
            fprintf(stderr, "load: --param wants NAME=VALUE\n");
            exit(2);
        }
        *equals = 0;
        param(more[i], equals + 1);
        *equals = '=';   /* the next request has it too */
    }
    put_record(r, BEGIN_REQUEST, begin, 8);
    put_record(r, PARAMS, params, params_size);
    put_record(r, PARAMS, "", 0);
    put_body(r, body);
}
