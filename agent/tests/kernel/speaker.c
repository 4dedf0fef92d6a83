/* A gateway that does one thing a line: "c PORT" connects a new SSL object, "l FILE" listens with the key and the
 * certificate in there and gives the port, "a" accepts a connection with a new SSL object, "w" writes a request on the
 * last one, "e" a failure, "r" reads from it once. It prints what that returned. */
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int main(void)
{
    static const char request[] = "GET /spoken HTTP/1.1\r\nHost: a\r\n\r\n";
    static char buffer[1 << 14];
    static const char failure[] = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
    char line[256];
    int listener = -1;
    SSL_CTX *context = SSL_CTX_new(TLS_client_method()), *server = NULL;
    SSL *ssl = NULL;
    while (fgets(line, sizeof line, stdin)) {
        int result = -1;
        if (line[0] == 'c') {
            struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(line + 2))};
            to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            int fd = socket(AF_INET, SOCK_STREAM, 0);
            ssl = SSL_new(context);
            if (!connect(fd, (struct sockaddr *)&to, sizeof to) && SSL_set_fd(ssl, fd))
                result = SSL_connect(ssl);
        } else if (line[0] == 'l') {
            struct sockaddr_in at = {.sin_family = AF_INET};
            socklen_t len = sizeof at;
            at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            line[strcspn(line, "\n")] = 0;
            listener = socket(AF_INET, SOCK_STREAM, 0);
            server = SSL_CTX_new(TLS_server_method());
            if (SSL_CTX_use_certificate_file(server, line + 2, SSL_FILETYPE_PEM) == 1 &&
                SSL_CTX_use_PrivateKey_file(server, line + 2, SSL_FILETYPE_PEM) == 1 &&
                !bind(listener, (struct sockaddr *)&at, sizeof at) && !listen(listener, 8) &&
                !getsockname(listener, (struct sockaddr *)&at, &len))
                result = ntohs(at.sin_port);
        } else if (line[0] == 'a') {
            int fd = accept(listener, NULL, NULL);
            ssl = SSL_new(server);
            if (fd >= 0 && SSL_set_fd(ssl, fd))
                result = SSL_accept(ssl);
        } else if (line[0] == 'e') {
            result = SSL_write(ssl, failure, sizeof failure - 1);
        } else if (line[0] == 'w') {
            result = SSL_write(ssl, request, sizeof request - 1);
        } else if (line[0] == 'r') {
            result = SSL_read(ssl, buffer, sizeof buffer);
        }
        printf("%d\n", result);
        fflush(stdout);
    }
    return 0;
}
