# SPDX-License-Identifier: Apache-2.0
"""What is modelled, the measured figures, and the formulas.

Sizes are in MiB, rates in MiB per second, times in seconds. A limit that is
unknown, or has no effect, is infinite.
"""

import dataclasses
import math

#: QEMU's backup job and a qcow2 overlay keep whole clusters of 64 KiB, however
#: little a guest writes.
CLUSTER_KIB = 64


@dataclasses.dataclass(frozen=True)
class Kind:
    """What was measured of one kind of image.

    All figures are those of doc/source/admin/performance-appendix.rst, of a
    machine with two cores and without KVM.

    :param sent: bytes that are sent for each byte of data; None if that
        depends on the disk alone
    :param encode_rate: data that one snapshot reads and encodes, MiB/s
    :param memory: of one snapshot in nova-compute, MiB
    :param cpu: of nova-compute and QEMU, seconds per GiB of data
    """

    sent: float | None
    encode_rate: float
    memory: float
    cpu: float


# All snapshots without buffer took 7 to 14 MiB.
_MEMORY = 15

# Defaults of [snapext]qcow2_buffer_mb, and what compression takes more.
_BUFFER, _COMPRESSION = 32, 16

KINDS = {
    # "Reader and encoder alone", incompressible: 2,048 MiB in 0.50 s. CPU of
    # "2 GiB of incompressible data".
    'plain': Kind(1, 4096, _MEMORY, 1.7 + 0.6),
    # "A block device of 8 GiB": 8,192 MiB in 5.58 s, less FIXED. The CPU time
    # of what is sent; zeros cost less.
    'zeroes': Kind(None, 1581, _MEMORY + _BUFFER, 1.7 + 0.6),
    # "2 GiB of what a system disk holds", compressed: 1,891 MiB in 6.04 s,
    # less FIXED.
    'compressed': Kind(0.38, 335, _MEMORY + _BUFFER + _COMPRESSION, 3 + 0.7)}

#: Seconds of each snapshot that are outside the stream: "Where the time goes".
FIXED = 0.4

#: What Glance takes of one upload, MiB/s: "2 GiB of incompressible data",
#: 2,071 MiB in 12.06 s, less FIXED. Glance, its store, the guest and
#: nova-compute shared two cores.
UPLOAD_RATE = 178

#: CPU of Glance in the same case, seconds per GiB that is sent.
GLANCE_CPU = 4.7

#: What Nova runs at once on a host by default: the higher one of
#: [DEFAULT]max_concurrent_builds and max_concurrent_snapshots, if it runs with
#: native threads. Under eventlet it is max_concurrent_snapshots alone, 5.
CONCURRENT = 10


@dataclasses.dataclass(frozen=True)
class Model:
    """Hosts, their guests, and what limits them.

    :param hosts: number of hosts
    :param guests: number of guests on each host, each with one snapshot
    :param data: what one snapshot reads, MiB
    :param spread: by how much the data of guests differs, as a part of it
    :param disk: virtual size of a root disk, MiB
    :param write_rate: what a guest writes to its root disk, MiB/s
    :param write_size: size of one of its writes, KiB
    :param write_area: the part of the disk that it writes to, MiB
    :param window: seconds in which the snapshots are asked for; 0: all at once
    :param is_even: whether they are spread evenly over it, not at random
    :param seed: of all that is random
    :param concurrent: most snapshots that run on a host at once
    :param fixed: seconds of a snapshot that are outside the stream
    :param sent: bytes that are sent for each byte of data
    :param encode_rate: data that one snapshot reads and encodes, MiB/s
    :param upload_rate: what Glance takes of one upload, MiB/s
    :param host_read_rate: data that all snapshots of a host read, MiB/s
    :param host_network: what all snapshots of a host send, MiB/s
    :param host_cores: CPUs of a host that its snapshots may use
    :param glance_rate: what Glance takes of all uploads, MiB/s
    :param merge_rate: what a host merges of one overlay, MiB/s; None if the
        strategy makes no overlay
    :param memory: of one snapshot in nova-compute, MiB
    :param cpu: of nova-compute and QEMU, seconds per GiB of data
    :param glance_cpu: of Glance, seconds per GiB that is sent
    """

    data: float
    disk: float
    write_rate: float
    hosts: int = 1
    guests: int = 1
    spread: float = 0
    write_size: float = CLUSTER_KIB
    write_area: float = math.inf
    window: float = 0
    is_even: bool = False
    seed: int = 1
    concurrent: int = CONCURRENT
    fixed: float = FIXED
    sent: float = 1
    encode_rate: float = KINDS['plain'].encode_rate
    upload_rate: float = UPLOAD_RATE
    host_read_rate: float = math.inf
    host_network: float = math.inf
    host_cores: float = math.inf
    glance_rate: float = math.inf
    merge_rate: float | None = None
    memory: float = KINDS['plain'].memory
    cpu: float = KINDS['plain'].cpu
    glance_cpu: float = GLANCE_CPU

    @property
    def upload_limit(self) -> float:
        """Return what one snapshot sends if nothing is shared, MiB/s."""
        return min(self.upload_rate, self.encode_rate * self.sent)

    @property
    def host_limit(self) -> float:
        """Return what all snapshots of a host can send, MiB/s."""
        data_rate = min(self.host_read_rate, self.host_cores * 1024 / self.cpu)
        return min(self.host_network, data_rate * self.sent)

    def rate(self, on_host: int, hosts: int) -> float:
        """Return what each of equal snapshots sends, MiB/s.

        :param on_host: number of snapshots that run on each host
        :param hosts: number of hosts with as many
        """
        return min(self.upload_limit, self.host_limit / on_host,
                   self.glance_rate / (on_host * hosts))

    def stream_seconds(self, on_host: int, hosts: int) -> float:
        """Return how long the disk is frozen, if all snapshots are equal."""
        return self.fixed + self.data * self.sent / self.rate(on_host, hosts)

    @property
    def growth(self) -> float:
        """Return how fast a scratch file or an overlay grows, MiB/s.

        It is the most that is possible: no two writes meet the same cluster.
        """
        return self.write_rate * max(1, CLUSTER_KIB / self.write_size)

    def kept(self, seconds: float) -> float:
        """Return the size of a scratch file or an overlay after a time, MiB.

        :param seconds: since the disk was frozen
        """
        return min(self.growth * seconds, self.write_area, self.disk)

    def merge_seconds(self, stream_seconds: float) -> float:
        """Return how long the merge of an overlay takes.

        The guest writes on, and what it writes has to be merged, too.

        :param stream_seconds: since the disk was frozen
        """
        if self.merge_rate is None:
            return 0
        return self.kept(stream_seconds) / (self.merge_rate - self.growth)

    def snapshot_seconds(self, on_host: int, hosts: int) -> float:
        """Return how long a snapshot takes, its merge included."""
        stream = self.stream_seconds(on_host, hosts)
        return stream + self.merge_seconds(stream)

    @property
    def at_once(self) -> int:
        """Return how many snapshots a host runs if all are asked for."""
        return min(self.concurrent, self.guests)

    @property
    def night_seconds(self) -> float:
        """Return how long all take, if equal and asked for at once."""
        rounds, rest = divmod(self.guests, self.concurrent)
        seconds = 0.0
        if rounds:
            seconds += rounds * self.snapshot_seconds(
                self.concurrent, self.hosts)
        if rest:
            seconds += self.snapshot_seconds(rest, self.hosts)
        return seconds

    @property
    def host_space(self) -> float:
        """Return the scratch files and overlays of a host at their peak, MiB.

        All of its snapshots are equal, and end at the same moment.
        """
        return self.at_once * self.kept(
            self.snapshot_seconds(self.at_once, self.hosts))

    @property
    def glance_demand(self) -> float:
        """Return what all hosts send if Glance is no limit, MiB/s."""
        return self.hosts * min(self.at_once * self.upload_limit,
                                self.host_limit)

    @property
    def sent_in_all(self) -> float:
        """Return what Glance has to store, if all are equal, MiB."""
        return self.hosts * self.guests * self.data * self.sent
