/* Functions with the names of OpenSSL's, in two builds: SSL_write_ex leaves by a jump to SSL_write_ex2, or with
 * ALONE, as where the compiler has put the one into the other, does without it. Its argument is the port of the
 * upstream; it begins when it is sent a line. */
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct {
    int fd;
} SSL;

#define APART __attribute__((noinline, noclone, used))

static APART int put(SSL *ssl, const void *from, size_t len, size_t *done)
{
    ssize_t sent = write(ssl->fd, from, len);
    *done = sent > 0 ? sent : 0;
    return sent > 0;
}

APART int SSL_write_ex2(SSL *ssl, const void *from, size_t len, uint64_t flags, size_t *done)
{
    int result = flags ? 0 : put(ssl, from, len, done);
    return result < 0 ? 0 : result;
}

APART int SSL_write_ex(SSL *ssl, const void *from, size_t len, size_t *done)
{
#ifdef ALONE
    int result = put(ssl, from, len, done);
    return result < 0 ? 0 : result;
#else
    return SSL_write_ex2(ssl, from, len, 0, done);
#endif
}

APART int SSL_read_ex(SSL *ssl, void *to, size_t room, size_t *done)
{
    ssize_t got = read(ssl->fd, to, room);
    *done = got > 0 ? got : 0;
    return got > 0;
}

APART int SSL_do_handshake(SSL *ssl)
{
    /* A record with the beginning of a ClientHello. */
    static const unsigned char hello[64] = {22, 3, 1, 0, 59, 1, 0, 0, 55, 3, 3};
    size_t done;
    int result = put(ssl, hello, sizeof hello, &done);
    return result + !done;
}

APART void ERR_vset_error(int library, int reason, const char *format)
{
    if (!format)
        fprintf(stderr, "%d %d", library, reason);
}

int main(int argc, char **argv)
{
    static const char request[] = "GET /static HTTP/1.1\r\nHost: a\r\n\r\n";
    char line[64];
    size_t done;
    SSL ssl = {socket(AF_INET, SOCK_STREAM, 0)};
    struct sockaddr_in to = {.sin_family = AF_INET};
    if (argc < 2 || !fgets(line, sizeof line, stdin))
        return 2;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(atoi(argv[1]));
    if (connect(ssl.fd, (struct sockaddr *)&to, sizeof to) || SSL_do_handshake(&ssl) != 1)
        return 3;
    if (SSL_write_ex(&ssl, request, 20, &done) != 1 ||
        SSL_write_ex2(&ssl, request + 20, sizeof request - 21, 0, &done) != 1)
        return 4;
    return SSL_read_ex(&ssl, line, sizeof line, &done) != 1;
}
