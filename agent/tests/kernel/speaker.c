/* A gateway that does one thing a line: "c PORT" connects a new SSL object, "w" writes a request on the last
 * one, "r" reads from it once. It prints what that returned. */
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

int main(void)
{
    static const char request[] = "GET /spoken HTTP/1.1\r\nHost: a\r\n\r\n";
    static char buffer[1 << 14];
    char line[64];
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
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
