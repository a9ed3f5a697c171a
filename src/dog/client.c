/* SPDX-License-Identifier: Apache-2.0 */
/* dog's connection to a sheep. */
#include "dog/client.h"
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>
#include "base/bytes.h"
#include "base/err.h"
#include "dog/memory.h"

#define CONNECT_TIMEOUT_MS 10000
#define GREET_TIMEOUT_MS   10000

struct client {
    int fd;
    char address[CLIENT_ADDRESS_SIZE];
    uint8_t *buffer; /* ADMIN_ANSWER_MAX */
};

static int fail(char error[CLIENT_ERROR_SIZE], int r, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static int fail(char error[CLIENT_ERROR_SIZE], int r, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error, CLIENT_ERROR_SIZE, format, args);
    va_end(args);
    return r;
}

int client_address(const char *text, const char *port, char ret[CLIENT_ADDRESS_SIZE])
{
    int n;
    if (strncmp(text, "unix:", 5) == 0) {
        if (text[5] != '/')
            return -EINVAL;
        n = snprintf(ret, CLIENT_ADDRESS_SIZE, "%s", text);
    } else {
        if (strncmp(text, "tcp:", 4) == 0)
            text += 4;
        const char *bracket = strchr(text, ']');
        const char *colon = strrchr(text, ':');
        bool bare_v6 = !bracket && colon && strchr(text, ':') != colon;
        bool has_port = colon && !bare_v6 && (!bracket || colon > bracket);
        if (text[0] == '\0' || colon == text || (has_port && colon[1] == '\0'))
            return -EINVAL;
        if (has_port)
            n = snprintf(ret, CLIENT_ADDRESS_SIZE, "tcp:%s", text);
        else
            n = snprintf(ret, CLIENT_ADDRESS_SIZE, bare_v6 ? "tcp:[%s]:%s" : "tcp:%s:%s", text,
                         port);
    }
    return n < CLIENT_ADDRESS_SIZE ? 0 : -EINVAL;
}

/* Connects a socket within the time allowed. Returns 0 or a negative errno. */
static int connect_within(int fd, const struct sockaddr *address, socklen_t length)
{
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    if (connect(fd, address, length) < 0) {
        if (errno != EINPROGRESS && errno != EAGAIN)
            return -errno;
        struct pollfd p = {.fd = fd, .events = POLLOUT};
        int n = poll(&p, 1, CONNECT_TIMEOUT_MS);
        if (n <= 0)
            return n == 0 ? -ETIMEDOUT : -errno;
        int so_error = 0;
        socklen_t so_length = sizeof(so_error);
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &so_error, &so_length);
        if (so_error != 0)
            return -so_error;
    }
    fcntl(fd, F_SETFL, flags);
    return 0;
}

static int connect_unix(const char *path, int *ret_fd)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(un.sun_path))
        return -ENAMETOOLONG;
    memcpy(un.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int r = connect_within(fd, (struct sockaddr *)&un, sizeof(un));
    if (r < 0) {
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

static int connect_tcp(const char *host_port, int *ret_fd, char error[CLIENT_ERROR_SIZE])
{
    char host[CLIENT_ADDRESS_SIZE];
    snprintf(host, sizeof(host), "%s", host_port);
    char *colon = strrchr(host, ':');
    ASSERT(colon);
    *colon = '\0';
    char *name = host;
    if (name[0] == '[' && colon > name && colon[-1] == ']') {
        colon[-1] = '\0';
        name++;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int e = getaddrinfo(name, colon + 1, &hints, &found);
    if (e != 0)
        return fail(error, -ENOTCONN, "address %s: %s", host_port, gai_strerror(e));
    int r = -ENOTCONN;
    for (struct addrinfo *a = found; a; a = a->ai_next) {
        int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0) {
            r = -errno;
            continue;
        }
        r = connect_within(fd, a->ai_addr, a->ai_addrlen);
        if (r == 0) {
            int one = 1;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
            *ret_fd = fd;
            break;
        }
        close(fd);
    }
    freeaddrinfo(found);
    return r;
}

static int read_full(const struct client *c, void *buffer, size_t length)
{
    uint8_t *p = buffer;
    while (length > 0) {
        ssize_t n = recv(c->fd, p, length, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -ECONNRESET;
        p += n;
        length -= (size_t)n;
    }
    return 0;
}

static int write_full(const struct client *c, struct iovec *iov, unsigned count)
{
    while (count > 0) {
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = count};
        ssize_t n = sendmsg(c->fd, &m, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -ECONNRESET;
        while (count > 0 && (size_t)n >= iov->iov_len) {
            n -= (ssize_t)iov->iov_len;
            iov++;
            count--;
        }
        if (count > 0) {
            iov->iov_base = (uint8_t *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
        }
    }
    return 0;
}

static int greet(struct client *c, char error[CLIENT_ERROR_SIZE])
{
    struct iovec iov = {.iov_base = (void *)ADMIN_MAGIC, .iov_len = ADMIN_MAGIC_SIZE};
    uint8_t magic[ADMIN_MAGIC_SIZE];
    struct pollfd p = {.fd = c->fd, .events = POLLIN};
    int r = write_full(c, &iov, 1);
    if (r == 0 && poll(&p, 1, GREET_TIMEOUT_MS) == 0)
        return fail(error, -ETIMEDOUT,
                    "%s does not answer: is it a sheep, and not stopped or overloaded?",
                    c->address);
    if (r == 0)
        r = read_full(c, magic, sizeof(magic));
    if (r < 0)
        return fail(error, r, "%s closed the connection: is it the admin address of a sheep?",
                    c->address);
    switch (admin_magic_parse(magic)) {
    case ADMIN_MAGIC_OURS:
        return 0;
    case ADMIN_MAGIC_OTHER_VERSION:
        return fail(error, -EPROTO,
                    "the sheep at %s speaks version %c of the admin protocol, this dog version %c: "
                    "use a dog of the version of the sheep",
                    c->address, magic[ADMIN_MAGIC_SIZE - 1], ADMIN_MAGIC[ADMIN_MAGIC_SIZE - 1]);
    case ADMIN_MAGIC_FOREIGN:
        break;
    }
    return fail(error, -EPROTO, "%s is not the admin address of a sheep", c->address);
}

int client_open(const char *address, struct client **ret, char error[CLIENT_ERROR_SIZE])
{
    int fd, r;
    error[0] = '\0';
    if (strncmp(address, "unix:", 5) == 0)
        r = connect_unix(address + 5, &fd);
    else
        r = connect_tcp(address + 4, &fd, error);
    if (r < 0) {
        if (error[0] == '\0')
            fail(error, r,
                 "no sheep can be reached at %s: %s (is it running? -a HOST -p PORT, -s ADDRESS or "
                 "KELPIE_ADMIN choose another)",
                 address, strerror(-r));
        return r;
    }
    struct client *c = dog_alloc(sizeof(*c));
    c->fd = fd;
    c->buffer = dog_alloc(ADMIN_ANSWER_MAX);
    snprintf(c->address, sizeof(c->address), "%s", address);
    r = greet(c, error);
    if (r < 0) {
        client_close(c);
        return r;
    }
    *ret = c;
    return 0;
}

void client_close(struct client *c)
{
    if (!c)
        return;
    close(c->fd);
    dog_free(c->buffer);
    dog_free(c);
}

int client_receive(struct client *c, struct client_frame *ret, char error[CLIENT_ERROR_SIZE])
{
    uint8_t bytes[ADMIN_HEADER_SIZE];
    struct admin_header h;
    int r = read_full(c, bytes, sizeof(bytes));
    if (r == 0)
        r = admin_header_get(bytes, ADMIN_FROM_SERVER, &h);
    if (r == 0)
        r = read_full(c, c->buffer, h.length);
    if (r == -ECONNRESET)
        return fail(error, r, "the sheep at %s closed the connection before it answered",
                    c->address);
    if (r == 0)
        r = admin_payload_check(&h, c->buffer);
    *ret = (struct client_frame){0};
    if (r == 0) {
        ret->kind = h.kind;
        ret->data = c->buffer;
        ret->length = h.length;
        if (h.kind == ADMIN_ZEROS)
            ret->zeros = get_le64(c->buffer);
        if (h.kind == ADMIN_JSON) {
            if (admin_json_depth_ok((char *)c->buffer, h.length))
                ret->json = json_loadb((char *)c->buffer, h.length, 0, NULL);
            if (!json_is_object(ret->json)) {
                json_decref(ret->json);
                ret->json = NULL;
                r = -EBADMSG;
            }
        }
    }
    return r == 0 ? 0
                  : fail(error, -EBADMSG, "the sheep at %s sent a malformed answer", c->address);
}

int client_send(struct client *c, enum admin_kind kind, const void *payload, uint32_t length,
                char error[CLIENT_ERROR_SIZE])
{
    uint8_t header[ADMIN_HEADER_SIZE];
    admin_header_put(header, kind, payload, length);
    struct iovec iov[2] = {{.iov_base = header, .iov_len = sizeof(header)},
                           {.iov_base = (void *)payload, .iov_len = length}};
    int r = write_full(c, iov, length > 0 ? 2 : 1);
    return r == 0 ? 0 : fail(error, r, "the connection to the sheep at %s broke", c->address);
}

int client_send_json(struct client *c, const json_t *json, char error[CLIENT_ERROR_SIZE])
{
    char *text = json_dumps(json, JSON_COMPACT);
    if (!text)
        return fail(error, -ENOMEM, "out of memory");
    size_t length = strlen(text);
    int r = length > ADMIN_REQUEST_MAX ? fail(error, -EINVAL, "the request is too long")
                                       : client_send(c, ADMIN_JSON, text, (uint32_t)length, error);
    free(text);
    return r;
}

bool client_readable(const struct client *c)
{
    struct pollfd p = {.fd = c->fd, .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}
