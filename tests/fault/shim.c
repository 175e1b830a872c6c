/* Make the n-th system call of a kind go wrong, in a process that was started with LD_PRELOAD.
 *
 * FULGATE_FAULT_CONTROL names a file of the form `struct control`, mapped here and by the test.
 * While `armed` is not 0, the calls of kind `call` are counted, and the one that makes `count`
 * reach `nth` gets `fault`. Only sockets that accept() gave are meant by RECV, SEND and CTL, so
 * that pipes, files and the interpreter's own descriptors are left alone.
 * A close() of a descriptor that is not open is counted too: between threads it is how a server
 * closes somebody else's connection.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { RECV, SEND, ACCEPT, WAIT, CTL, KINDS };
enum { SHORT = 1001, ZERO = 1002 };   /* anything below is an errno */

struct control {
    _Atomic uint32_t armed, call, fault, nth, count, injected, bad_closes, calls[KINDS];
};

static struct control nowhere, *control = &nowhere;
enum { MOST = 1 << 16 };
static atomic_bool accepted[MOST];

__attribute__((constructor)) static void map_control(void) {
    const char *path = getenv("FULGATE_FAULT_CONTROL");
    if (!path)
        return;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        abort();
    void *at = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        abort();
    close(fd);
    control = at;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* The fault that this call is to get; 0 for none. */
static int fault_of(int kind) {
    if (!atomic_load(&control->armed))
        return 0;
    atomic_fetch_add(&control->calls[kind], 1);
    if ((int)atomic_load(&control->call) != kind)
        return 0;
    if (atomic_fetch_add(&control->count, 1) + 1 != atomic_load(&control->nth))
        return 0;
    atomic_fetch_add(&control->injected, 1);
    return (int)atomic_load(&control->fault);
}

static bool ours(int fd) {
    return fd >= 0 && fd < MOST && atomic_load(&accepted[fd]);
}

static int socket_fault(int kind, int fd) {
    return ours(fd) ? fault_of(kind) : 0;
}

/* An errno is set and -1 returned, ZERO returns 0, anything else goes on. */
#define FAIL(fault) \
    do { \
        if (fault == ZERO) \
            return 0; \
        if (fault && fault != SHORT) { \
            errno = fault; \
            return -1; \
        } \
    } while (0)

static size_t at_most(int fault, size_t n) {
    return fault == SHORT && n > 1 ? 1 : n;
}

/* The first byte of a list of buffers, as a list. */
static struct iovec first_byte(const struct iovec *parts, size_t n) {
    struct iovec one = {NULL, 0};
    for (size_t i = 0; i < n && !one.iov_len; i++)
        one = (struct iovec){parts[i].iov_base, parts[i].iov_len ? 1 : 0};
    return one;
}

ssize_t recv(int fd, void *buffer, size_t n, int flags) {
    REAL(recv);
    int fault = socket_fault(RECV, fd);
    FAIL(fault);
    return real(fd, buffer, at_most(fault, n), flags);
}

ssize_t recvfrom(int fd, void *restrict buffer, size_t n, int flags,
                 struct sockaddr *restrict from, socklen_t *restrict size) {
    REAL(recvfrom);
    int fault = socket_fault(RECV, fd);
    FAIL(fault);
    return real(fd, buffer, at_most(fault, n), flags, from, size);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags) {
    REAL(recvmsg);
    int fault = socket_fault(RECV, fd);
    FAIL(fault);
    if (fault == SHORT) {
        struct iovec one = first_byte(message->msg_iov, message->msg_iovlen);
        struct msghdr less = *message;
        less.msg_iov = &one;
        less.msg_iovlen = 1;
        return real(fd, &less, flags);
    }
    return real(fd, message, flags);
}

ssize_t read(int fd, void *buffer, size_t n) {
    REAL(read);
    int fault = socket_fault(RECV, fd);
    FAIL(fault);
    return real(fd, buffer, at_most(fault, n));
}

ssize_t readv(int fd, const struct iovec *parts, int n) {
    REAL(readv);
    int fault = socket_fault(RECV, fd);
    FAIL(fault);
    if (fault == SHORT) {
        struct iovec one = first_byte(parts, (size_t)n);
        return real(fd, &one, 1);
    }
    return real(fd, parts, n);
}

ssize_t send(int fd, const void *buffer, size_t n, int flags) {
    REAL(send);
    int fault = socket_fault(SEND, fd);
    FAIL(fault);
    return real(fd, buffer, at_most(fault, n), flags);
}

ssize_t sendto(int fd, const void *buffer, size_t n, int flags, const struct sockaddr *to,
               socklen_t size) {
    REAL(sendto);
    int fault = socket_fault(SEND, fd);
    FAIL(fault);
    return real(fd, buffer, at_most(fault, n), flags, to, size);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    REAL(sendmsg);
    int fault = socket_fault(SEND, fd);
    FAIL(fault);
    if (fault == SHORT) {
        struct iovec one = first_byte(message->msg_iov, message->msg_iovlen);
        struct msghdr less = *message;
        less.msg_iov = &one;
        less.msg_iovlen = 1;
        return real(fd, &less, flags);
    }
    return real(fd, message, flags);
}

ssize_t write(int fd, const void *buffer, size_t n) {
    REAL(write);
    int fault = socket_fault(SEND, fd);
    FAIL(fault);
    return real(fd, buffer, at_most(fault, n));
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(writev);
    int fault = socket_fault(SEND, fd);
    FAIL(fault);
    if (fault == SHORT) {
        struct iovec one = first_byte(parts, (size_t)n);
        return real(fd, &one, 1);
    }
    return real(fd, parts, n);
}

ssize_t sendfile(int fd, int file, off_t *at, size_t n) {
    REAL(sendfile);
    int fault = socket_fault(SEND, fd);
    FAIL(fault);
    return real(fd, file, at, at_most(fault, n));
}

ssize_t sendfile64(int fd, int file, off64_t *at, size_t n) {
    REAL(sendfile64);
    int fault = socket_fault(SEND, fd);
    FAIL(fault);
    return real(fd, file, at, at_most(fault, n));
}

static int note_accepted(int fd) {
    if (fd >= 0 && fd < MOST)
        atomic_store(&accepted[fd], true);
    return fd;
}

int accept(int fd, struct sockaddr *restrict from, socklen_t *restrict size) {
    REAL(accept);
    int fault = fault_of(ACCEPT);
    FAIL(fault);
    return note_accepted(real(fd, from, size));
}

int accept4(int fd, struct sockaddr *restrict from, socklen_t *restrict size, int flags) {
    REAL(accept4);
    int fault = fault_of(ACCEPT);
    FAIL(fault);
    return note_accepted(real(fd, from, size, flags));
}

int epoll_wait(int fd, struct epoll_event *events, int most, int timeout) {
    REAL(epoll_wait);
    int fault = fault_of(WAIT);
    FAIL(fault);
    return real(fd, events, fault == SHORT ? 1 : most, timeout);
}

int epoll_ctl(int poller, int operation, int fd, struct epoll_event *event) {
    REAL(epoll_ctl);
    /* a removal cannot run out of anything */
    int fault = operation == EPOLL_CTL_DEL ? 0 : socket_fault(CTL, fd);
    FAIL(fault);
    return real(poller, operation, fd, event);
}

int poll(struct pollfd *fds, nfds_t n, int timeout) {
    REAL(poll);
    bool loop = false;   /* of a server; not a wait on one connection */
    for (nfds_t i = 0; i < n; i++)
        loop |= !ours(fds[i].fd);
    int fault = loop ? fault_of(WAIT) : 0;
    FAIL(fault);
    return real(fds, n, timeout);
}

int close(int fd) {
    REAL(close);
    if (fd >= 0 && fd < MOST)
        atomic_store(&accepted[fd], false);   /* before: another thread may get the number next */
    int result = real(fd);
    if (result && errno == EBADF && atomic_load(&control->armed)) {
        atomic_fetch_add(&control->bad_closes, 1);
        errno = EBADF;
    }
    return result;
}
