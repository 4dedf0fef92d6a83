/* A gateway of one request, for a static OpenSSL: it makes its handshake inside SSL_write. Its arguments are
 * the upstream's port and "ex" for the other pair of functions; it begins when it is sent a line. */
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    static const char request[] = "GET /static HTTP/1.1\r\nHost: a\r\n\r\n";
    char buffer[512];
    struct sockaddr_in to = {.sin_family = AF_INET};
    if (argc < 3 || !fgets(buffer, sizeof buffer, stdin))
        return 2;
    to.sin_port = htons(atoi(argv[1]));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&to, sizeof to))
        return 3;
    int ex = !strcmp(argv[2], "ex");
    SSL *ssl = SSL_new(SSL_CTX_new(TLS_client_method()));
    SSL_set_fd(ssl, fd);
    SSL_set_connect_state(ssl);
    size_t done = 0;
    if (ex ? !SSL_write_ex(ssl, request, sizeof request - 1, &done)
           : SSL_write(ssl, request, sizeof request - 1) <= 0)
        return 4;
    while (ex ? SSL_read_ex(ssl, buffer, sizeof buffer, &done) : SSL_read(ssl, buffer, sizeof buffer) > 0)
        ;
    return 0;
}
