/* A gateway of two requests: it makes its handshakes inside SSL_write, on two connections with one SSL object,
 * and ends with SSL_sendfile. Its arguments are "plain", "ex" or "ex2" for what it writes and reads with, and
 * the ports of both upstreams; it begins when it is sent a line. */
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Not every build has these two. */
int SSL_write_ex2(SSL *ssl, const void *from, size_t len, uint64_t flags, size_t *done);
#pragma weak SSL_write_ex2
#pragma weak SSL_sendfile

int main(int argc, char **argv)
{
    static const char request[] = "GET /static HTTP/1.1\r\nHost: a\r\n\r\n";
    char buffer[512];
    struct sockaddr_in to = {.sin_family = AF_INET};
    if (argc < 4 || !fgets(buffer, sizeof buffer, stdin))
        return 2;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int ex2 = !strcmp(argv[1], "ex2");
    int ex = ex2 || !strcmp(argv[1], "ex");
    SSL *ssl = SSL_new(SSL_CTX_new(TLS_client_method()));
    for (int n = 0; n < 2; n++) {
        /* The first connection stays open beside the second. */
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        to.sin_port = htons(atoi(argv[2 + n]));
        if (connect(fd, (struct sockaddr *)&to, sizeof to))
            return 3;
        if (n && !SSL_clear(ssl))
            return 5;
        SSL_set_fd(ssl, fd);
        SSL_set_connect_state(ssl);
        size_t done = 0;
        if (ex2  ? !SSL_write_ex2(ssl, request, sizeof request - 1, 0, &done)
            : ex ? !SSL_write_ex(ssl, request, sizeof request - 1, &done)
                 : SSL_write(ssl, request, sizeof request - 1) <= 0)
            return 4;
        while (ex ? SSL_read_ex(ssl, buffer, sizeof buffer, &done) : SSL_read(ssl, buffer, sizeof buffer) > 0)
            ;
    }
    /* It fails without kernel TLS, and is seen all the same. */
    if (SSL_sendfile)
        SSL_sendfile(ssl, 0, 0, 1, 0);
    return 0;
}
