/* Make fork() fail, with the errno that the file FULGATE_FORK_FAULT holds, as long as it is there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

pid_t fork(void) {
    const char *path = getenv("FULGATE_FORK_FAULT");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file) {
        int fault = 0;
        int read = fscanf(file, "%d", &fault);
        fclose(file);
        if (read == 1) {
            errno = fault;
            return -1;
        }
    }
    pid_t (*real)(void) = (pid_t (*)(void))dlsym(RTLD_NEXT, "fork");
    return real();
}
