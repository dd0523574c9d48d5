/* SPDX-License-Identifier: Apache-2.0
 *
 * Rewrites the end of a block device at a steady rate, without the page cache.
 *
 *     load DEVICE SIZE RATE
 *
 * The last SIZE bytes are rewritten again and again, RATE bytes a second. Every
 * quarter of a second, `LOAD BYTES` on the console shows the total so far.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (256 * 1024)

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void die(const char *what)
{
    printf("LOAD FAILED: %s: %s\n", what, strerror(errno));
    exit(1);
}

int main(int argc, char **argv)
{
    uint64_t size, rate, written = 0, counted = 0;
    double begin, reported;
    off_t end;
    void *chunk;
    int device;

    if (argc != 4)
        return 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    size = strtoull(argv[2], NULL, 10);
    rate = strtoull(argv[3], NULL, 10);
    device = open(argv[1], O_WRONLY | O_DIRECT);
    if (device < 0 || posix_memalign(&chunk, 4096, CHUNK))
        die(argv[1]);
    end = lseek(device, 0, SEEK_END) / CHUNK * CHUNK;
    begin = reported = now();
    for (;;) {
        memset(chunk, 1 + written / CHUNK % 251, CHUNK);
        if (pwrite(device, chunk, CHUNK,
                   end - size + written % size) != CHUNK)
            die("writing");
        written += CHUNK;
        counted += CHUNK;
        if (now() - reported >= 0.25) {
            reported = now();
            printf("LOAD %" PRIu64 "\n", written);
        }
        /* After a stall of more than a second, do not catch up. */
        if (now() - begin > counted / (double)rate + 1) {
            begin = now();
            counted = 0;
        }
        while (now() - begin < counted / (double)rate)
            usleep(2000);
    }
}
