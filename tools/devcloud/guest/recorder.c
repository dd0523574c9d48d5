/* SPDX-License-Identifier: Apache-2.0
 *
 * Writes numbered records. Each record is durable before the next one begins,
 * so a copy of the disk shows any lost, torn or reordered write.
 *
 *     recorder RECORDS FILE BOOT_ID INTERVAL_MS
 *
 * Record n fills the n-th 4 KiB block of the block device RECORDS (block 0
 * stays empty), and is then appended to FILE as a line. When both are on disk,
 * `REC n UPTIME` is printed on the console. Existing records are verified
 * first.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAGIC "SNAPREC1"

/* devcloud/records.py reads this; little-endian. */
struct record {
    char magic[8];
    uint64_t number;
    char boot_id[16];
    uint64_t uptime_ms;
    uint8_t filler[4052];
    uint32_t checksum;              /* CRC-32 of all bytes before it */
} __attribute__((packed));

_Static_assert(sizeof(struct record) == 4096, "a record is one block");

static volatile sig_atomic_t stopping;
static uint32_t crc_table[256];

static void stop(int signal_number)
{
    (void)signal_number;
    stopping = 1;
}

static void die(const char *what)
{
    printf("RECORDER FAILED: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void make_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = value & 1 ? value >> 1 ^ 0xedb88320 : value >> 1;
        crc_table[i] = value;
    }
}

static uint32_t checksum(const struct record *record)
{
    const uint8_t *bytes = (const uint8_t *)record;
    uint32_t value = ~0u;

    for (size_t i = 0; i < offsetof(struct record, checksum); i++)
        value = value >> 8 ^ crc_table[(value ^ bytes[i]) & 0xff];
    return ~value;
}

static uint64_t uptime_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000ull + now.tv_nsec / 1000000;
}

/* Report the existing records, and return the number of the last one. */
static uint64_t verify(int device)
{
    static struct record records[256];
    uint64_t block = 0, count = 0, last = 0, bad = 0;
    ssize_t got;

    while ((got = pread(device, records, sizeof records,
                        block * sizeof *records)) > 0)
        for (size_t i = 0; i < got / sizeof *records; i++, block++) {
            if (memcmp(records[i].magic, MAGIC, sizeof records[i].magic))
                continue;
            if (records[i].number != block
                || records[i].checksum != checksum(&records[i])) {
                bad++;
                continue;
            }
            count++;
            last = block;
        }
    if (got < 0)
        die("reading the records");
    printf("FOUND %" PRIu64 " LAST %" PRIu64 " GAPS %" PRIu64
           " BAD %" PRIu64 "\n", count, last, last - count, bad);
    return last;
}

int main(int argc, char **argv)
{
    static struct record record;
    char line[80];
    int device, file, length;
    struct sigaction action = { .sa_handler = stop };

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc != 5) {
        printf("RECORDER FAILED: wrong arguments\n");
        return 1;
    }
    make_crc_table();
    sigaction(SIGTERM, &action, NULL);
    device = open(argv[1], O_RDWR);
    if (device < 0)
        die(argv[1]);
    file = open(argv[2], O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (file < 0)
        die(argv[2]);
    memcpy(record.magic, MAGIC, sizeof record.magic);
    memcpy(record.boot_id, argv[3],
           strnlen(argv[3], sizeof record.boot_id));
    record.number = verify(device);
    while (!stopping) {
        record.number++;
        record.uptime_ms = uptime_ms();
        for (size_t i = 0; i < sizeof record.filler; i++)
            record.filler[i] = record.number + i * 7;
        record.checksum = checksum(&record);
        if (pwrite(device, &record, sizeof record,
                   record.number * sizeof record) != sizeof record) {
            if (errno == ENOSPC || errno == 0) {
                printf("FULL at %" PRIu64 "\n", record.number);
                return 0;
            }
            die("writing a record");
        }
        if (fdatasync(device))
            die("fdatasync of the records");
        length = snprintf(line, sizeof line, "%" PRIu64 " %.16s %" PRIu64
                          "\n", record.number, record.boot_id,
                          record.uptime_ms);
        if (write(file, line, length) != length || fsync(file))
            die(argv[2]);
        printf("REC %" PRIu64 " %.3f\n", record.number,
               uptime_ms() / 1000.0);
        usleep(atoi(argv[4]) * 1000);
    }
    printf("STOPPED %" PRIu64 "\n", record.number);
    return 0;
}
