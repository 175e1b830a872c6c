/* Where load.c connects to: unix:PATH, /PATH, tcp:HOST:PORT, tcp:[::1]:PORT. */
#include <netdb.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_storage address;
static socklen_t address_size;
static bool is_tcp;

static void parse_endpoint(const char *text) {
    if (!strncmp(text, "unix:", 5) || text[0] == '/') {
        struct sockaddr_un *u = (struct sockaddr_un *)&address;
        const char *path = text[0] == '/' ? text : text + 5;
        u->sun_family = AF_UNIX;
        if (strlen(path) >= sizeof u->sun_path) {
            fprintf(stderr, "load: the path is too long: %s\n", path);
            exit(2);
        }
        strcpy(u->sun_path, path);
        address_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
        return;
    }
    const char *rest = strncmp(text, "tcp:", 4) ? text : text + 4;
    const char *colon = strrchr(rest, ':');
    char host[256];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    if (!colon || (size_t)(colon - rest) >= sizeof host) {
        fprintf(stderr, "load: not an endpoint: %s\n", text);
        exit(2);
    }
    bool bracketed = rest[0] == '[' && colon > rest && colon[-1] == ']';
    snprintf(host, sizeof host, "%.*s", (int)(colon - rest) - (bracketed ? 2 : 0),
             rest + (bracketed ? 1 : 0));
    if (getaddrinfo(host, colon + 1, &hints, &found)) {
        fprintf(stderr, "load: no such address: %s\n", text);
        exit(2);
    }
    memcpy(&address, found->ai_addr, found->ai_addrlen);
    address_size = found->ai_addrlen;
    is_tcp = true;
    freeaddrinfo(found);
}
