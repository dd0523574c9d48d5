/* SPDX-License-Identifier: Apache-2.0
 *
 * Shows that the guest runs and writes, without making its disk larger.
 *
 *     beat DEVICE FILE INTERVAL_MS
 *
 * Each beat rewrites one of the first BLOCKS blocks of DEVICE in turn, and then
 * FILE in place: a frozen file system blocks this. When both are on disk,
 * `REC n UPTIME` is printed on the console. Numbers continue after a reboot.
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

#define MAGIC 0x5441454248435042ull
#define BLOCKS 1024

struct block {
    uint64_t magic, number;
    uint64_t filler[510];
};

_Static_assert(sizeof(struct block) == 4096, "a beat is one block");

static void die(const char *what)
{
    printf("BEAT FAILED: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void put(int file, const struct block *block, off_t index)
{
    if (pwrite(file, block, sizeof *block, index * sizeof *block)
            != sizeof *block || fdatasync(file))
        die("writing");
}

int main(int argc, char **argv)
{
    static struct block block;
    uint64_t number = 0;
    struct timespec now;
    int device, file;

    if (argc != 4)
        return 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    device = open(argv[1], O_RDWR);
    file = open(argv[2], O_WRONLY | O_CREAT, 0644);
    if (device < 0 || file < 0)
        die("opening");
    for (int index = 0; index < BLOCKS; index++)
        if (pread(device, &block, sizeof block, index * sizeof block)
                == sizeof block
                && block.magic == MAGIC && block.number > number)
            number = block.number;
    block.magic = MAGIC;
    for (;;) {
        block.number = ++number;
        for (int i = 0; i < 510; i++)
            block.filler[i] = number * 0x9e3779b97f4a7c15ull + i;
        put(device, &block, number % BLOCKS);
        put(file, &block, 0);
        clock_gettime(CLOCK_MONOTONIC, &now);
        printf("REC %" PRIu64 " %ld.%03ld\n", number, (long)now.tv_sec,
               now.tv_nsec / 1000000);
        usleep(atoi(argv[3]) * 1000);
    }
}
