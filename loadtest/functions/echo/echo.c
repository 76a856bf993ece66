/* The smallest useful function: what comes in goes out. Static, so that its start costs as little as a start can.
 * Built by `make echo-function`. */
#include <errno.h>
#include <unistd.h>

int main(void) {
    static char buffer[64 * 1024];
    for (;;) {
        ssize_t got = read(0, buffer, sizeof buffer);
        if (got == 0) return 0;
        if (got < 0) {
            if (errno == EINTR) continue;
            return 1;
        }
        for (ssize_t sent = 0; sent < got;) {
            ssize_t put = write(1, buffer + sent, (size_t)(got - sent));
            if (put < 0) {
                if (errno == EINTR) continue;
                return 1;
            }
            sent += put;
        }
    }
}
