/* Answers with the request's own body, on libfcgi, the C library. The socket is descriptor 0. */
#include <fcgiapp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 8192 };

static char buffer[32768];

static void size(FCGX_Request *r, long left) {
    for (int i = 0; i < PIECE; i++)
        buffer[i] = (char)i;
    for (; left > 0; left -= PIECE)
        FCGX_PutStr(buffer, left < PIECE ? left : PIECE, r->out);
}

/* FCGX_GetStr waits until it has as much as it was asked for. */
static void stream(FCGX_Request *r) {
    int n;
    while ((n = FCGX_GetStr(buffer, PIECE, r->in)) > 0) {
        FCGX_PutStr(buffer, n, r->out);
        FCGX_FFlush(r->out);
    }
}

static void endless(FCGX_Request *r, const char *path) {
    /* Once the one has failed, the other says that all is well. */
    while (FCGX_PutStr(buffer, sizeof buffer, r->out) >= 0 && FCGX_FFlush(r->out) == 0)
        usleep(10000);
    fclose(fopen(path, "w"));
}

static void respond(FCGX_Request *r) {
    const char *path = FCGX_GetParam("PATH_INFO", r->envp);
    const char *given = FCGX_GetParam("HTTP_X_GIVEN", r->envp);
    int n;
    if (!strcmp(path, "/missing"))
        FCGX_PutS("Status: 404 Not Found\r\n", r->out);
    if (!strcmp(path, "/stderr"))
        FCGX_PutS("a complaint\n", r->err);
    FCGX_FPrintF(r->out, "Content-Type: text/plain\r\nX-Method: %s\r\nX-Given: %s\r\n\r\n",
                 FCGX_GetParam("REQUEST_METHOD", r->envp), given ? given : "");
    if (!strcmp(path, "/size"))
        size(r, atol(FCGX_GetParam("QUERY_STRING", r->envp)));
    else if (!strcmp(path, "/stream"))
        stream(r);
    else if (!strcmp(path, "/endless"))
        endless(r, given);
    else
        while ((n = FCGX_GetStr(buffer, sizeof buffer, r->in)) > 0)
            FCGX_PutStr(buffer, n, r->out);
}

int main(void) {
    FCGX_Request request;
    FCGX_Init();
    FCGX_InitRequest(&request, 0, 0);
    while (FCGX_Accept_r(&request) == 0) {
        respond(&request);
        FCGX_Finish_r(&request);
    }
    return 0;
}
