/* SPDX-License-Identifier: Apache-2.0
 *
 * Rewrites the end of a block device at a steady rate, past the page cache.
 *
 *     load DEVICE SIZE RATE
 *
 * The last SIZE bytes are rewritten over and over, RATE bytes a second. Every
 * quarter of a second comes `LOAD BYTES`, written so far, on the console.
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

#define PIECE (256 * 1024)

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
    double begin, told;
    off_t end;
    void *piece;
    int device;

    if (argc != 4)
        return 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    size = strtoull(argv[2], NULL, 10);
    rate = strtoull(argv[3], NULL, 10);
    device = open(argv[1], O_WRONLY | O_DIRECT);
    if (device < 0 || posix_memalign(&piece, 4096, PIECE))
        die(argv[1]);
    end = lseek(device, 0, SEEK_END) / PIECE * PIECE;
    begin = told = now();
    for (;;) {
        memset(piece, 1 + written / PIECE % 251, PIECE);
        if (pwrite(device, piece, PIECE,
                   end - size + written % size) != PIECE)
            die("writing");
        written += PIECE;
        counted += PIECE;
        if (now() - told >= 0.25) {
            told = now();
            printf("LOAD %" PRIu64 "\n", written);
        }
        /* What was missed for longer than a second is not made up for. */
        if (now() - begin > counted / (double)rate + 1) {
            begin = now();
            counted = 0;
        }
        while (now() - begin < counted / (double)rate)
            usleep(2000);
    }
}
