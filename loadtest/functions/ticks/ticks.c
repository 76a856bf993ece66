/* Says what time it is, in microseconds since 1970, twenty times, one write each: what live output's delay is measured
 * with. The pauses are longer than those within which output is put together. Built by `make echo-function`. */
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(void) {
    const struct timespec pause = {.tv_nsec = 50 * 1000 * 1000};
    for (int tick = 0; tick < 20; tick++) {
        struct timespec now;
        char line[32];
        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_REALTIME, &now);
        int length = snprintf(line, sizeof line, "%lld\n", (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000);
        if (write(1, line, (size_t)length) != length) return 1;
    }
}
