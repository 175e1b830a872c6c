/* Answers with the request's own body, on libfcgi, the C library. The socket is descriptor 0. */
#include <fcgiapp.h>
#include <string.h>

int main(void) {
    FCGX_Request request;
    static char buffer[32768];
    int n;
    FCGX_Init();
    FCGX_InitRequest(&request, 0, 0);
    while (FCGX_Accept_r(&request) == 0) {
        const char *path = FCGX_GetParam("PATH_INFO", request.envp);
        const char *given = FCGX_GetParam("HTTP_X_GIVEN", request.envp);
        if (path && !strcmp(path, "/missing"))
            FCGX_PutS("Status: 404 Not Found\r\n", request.out);
        if (path && !strcmp(path, "/stderr"))
            FCGX_PutS("a complaint\n", request.err);
        FCGX_FPrintF(request.out, "Content-Type: text/plain\r\nX-Method: %s\r\nX-Given: %s\r\n\r\n",
                     FCGX_GetParam("REQUEST_METHOD", request.envp), given ? given : "");
        while ((n = FCGX_GetStr(buffer, sizeof buffer, request.in)) > 0)
            FCGX_PutStr(buffer, n, request.out);
        FCGX_Finish_r(&request);
    }
    return 0;
}
