# SPDX-License-Identifier: Apache-2.0
"""What compression would save on this host, by a sample of its disks.

The disks are read beside their guests, without QEMU's locks: no guest is kept
from starting, and nothing is changed. Only sizes are reported.
"""

from __future__ import annotations

from collections.abc import Iterator
import os
import tempfile
import threading
import time
import typing as ty

from nova_snapext import bounded
from nova_snapext.cmd.check import guests
from nova_snapext.cmd.check import item

NAME = 'compression'

# Root disks that are sampled, and instances that are tried for that.
DISKS = 3
TRIES = 10
# Clusters of each at most: 4 to 8 MiB are read. A snapshot's own sample has up
# to 64 MiB. The saving of three such samples differs by a few percent from
# that of all data.
CLUSTERS = 128

# Seconds in which a disk is sampled, or left out. If all of them have taken as
# long, no other one is tried.
SAMPLE_TIMEOUT = 5
# The same for storage that hangs. It is longer, so that everything that can
# be cleaned up is.
TIMEOUT = 10

FORMATS = ('qcow2', 'raw')


class _NotSampled(Exception):
    """A root disk is not sampled. The text says why."""


class _Sample(ty.NamedTuple):
    """The sample of one disk.

    :ivar image_format: Glance's disk_format of the image of a snapshot
    :ivar clusters: of the disk that contain data
    :ivar estimate: of their size, a :class:`streaming.Estimate`
    """

    image_format: str
    clusters: int
    estimate: ty.Any

    @property
    def size(self) -> float:
        """Bytes of the data, without zeros."""
        return float(self.clusters * self.estimate.uncompressed().mean)

    @property
    def is_worth_it(self) -> bool:
        """Whether a snapshot would compress it, if it may."""
        from nova_snapext.encode import qcow2
        return qcow2.saves_enough(self.estimate)

    @property
    def saved(self) -> float:
        """Bytes that an image would be smaller."""
        if not self.is_worth_it:
            return 0.0
        return self.size - float(self.clusters * self.estimate.mean)


def compression(host: item.Host) -> Iterator[item.Item]:
    """Tell what compression saves, and how it is switched on."""
    import libvirt

    from nova_snapext.encode import codec
    if host.driver is None:
        return
    not_known = 'what compression would save is not known: '
    if codec.type_in_use() == 'zstd' and codec.zstandard is None:
        yield item.ok(NAME, f'{not_known}[snapext]compression_type is zstd, '
                            f'and the Python package zstandard is not '
                            f'installed')
        return
    try:
        samples, left_out = _samples(host.driver)
    except libvirt.libvirtError as error:
        yield item.ok(NAME, f'{not_known}{_text(error)}')
        return
    skipped = f'not sampled: {", ".join(left_out)}' if left_out else ''
    if samples:
        yield _finding(samples, skipped and f'; {skipped}')
    else:
        yield item.ok(NAME, not_known + (skipped or 'Nova has no guest on '
                                                    'this host'))


def _finding(samples: list[_Sample], skipped: str) -> item.Item:
    from oslo_utils import units

    from nova_snapext import conf
    from nova_snapext.encode import codec
    from nova_snapext.encode import layout
    snapext = conf.CONF.snapext
    what = f'{codec.type_in_use()}, level {snapext.compression_level}'
    size = (sum(len(one.estimate.sizes) for one in samples) *
            layout.CLUSTER_SIZE / units.Mi)
    of = (f'a sample of {size:.2g} MiB of the root disks of {len(samples)} '
          f'instance{"s" if len(samples) > 1 else ""}')
    if not any(one.is_worth_it for one in samples):
        return item.ok(
            NAME, f'compression ({what}) is not worth it, and would not be '
                  f'used: {of} shows a saving below '
                  f'[snapext]compression_min_saving_percent '
                  f'({snapext.compression_min_saving_percent} %){skipped}')
    percent = 100 * sum(one.saved for one in samples) / sum(
        one.size for one in samples)
    if round(percent) < 1:
        return item.ok(
            NAME, f'compression ({what}) would save less than 1 % ({of})'
                  f'{skipped}')
    missing = _missing(samples)
    if not missing:
        return item.ok(
            NAME, f'images are compressed ({what}), and about {percent:.0f} % '
                  f'smaller by that ({of}){skipped}')
    return item.Item(
        NAME, item.Status.OK,
        f'images would be about {percent:.0f} % smaller with compression '
        f'({what}; {of}){skipped}',
        f'To switch it on, set {" and ".join(missing)}, and restart '
        f'nova-compute.')


def _missing(samples: list[_Sample]) -> list[str]:
    """Return what has to be set before these images are compressed."""
    from nova_snapext import conf
    missing = []
    if not conf.CONF.libvirt.snapshot_compression:
        missing.append('[libvirt]snapshot_compression = true')
    if any(one.image_format != 'qcow2' for one in samples):
        missing.append('[libvirt]snapshot_image_format = qcow2')
    return missing


def _samples(driver: ty.Any) -> tuple[list[_Sample], list[str]]:
    """Sample some disks, those of running guests first.

    :returns: the samples; and the instances without a sample, each with why
    """
    end = time.monotonic() + SAMPLE_TIMEOUT
    samples: list[_Sample] = []
    left_out = []
    for guest in _candidates(driver)[:TRIES]:
        try:
            samples.append(_sample(driver, guest))
        except Exception as error:
            left_out.append(f'{guest.name} ({_text(error)})')
        if len(samples) == DISKS or time.monotonic() > end:
            break
    return samples, left_out


def _candidates(driver: ty.Any) -> list[ty.Any]:
    """List Nova's guests, always in the same order."""
    from nova_snapext.hypervisor import domain
    running = {guest.uuid for guest in driver._host.list_guests()}
    found = [domain.Domain(guest._domain) for guest in
             driver._host.list_guests(only_running=False)]
    return sorted(filter(guests.is_of_nova, found),
                  key=lambda guest: (guest.uuid not in running, guest.uuid))


def _text(error: Exception) -> str:
    """Return an error in a few words, on one line."""
    from oslo_concurrency import processutils
    text = str(error).rstrip('.')
    if isinstance(error, processutils.ProcessExecutionError):
        # The rest has the command, and the options of each image.
        reason = str(error.stderr).strip().rpartition(': ')[2]
        text = f'qemu-nbd can\'t open its root disk: {reason}'
    return ' '.join(text.split())


def _sample(driver: ty.Any, guest: ty.Any) -> _Sample:
    """Compress a sample of the root disk of a guest.

    :raises _NotSampled: it can't be sampled, or should not be
    :raises NoResponse: its storage hangs
    :raises Exception: the host, libvirt or a header is in the way
    """
    from nova_snapext import plan as planning
    # Nova's conductor is not needed for a root disk that is an image's.
    instance = planning.UnknownInstance(guest.uuid, guest.name)
    if guests.in_progress(instance):
        raise _NotSampled('a snapshot is in progress')
    if not _is_from_image(guest):
        raise _NotSampled('its root disk is a volume')
    plan = guests.plan_of(driver, instance)
    disk = plan.disk
    if disk.unsupported_reason:
        raise _NotSampled(disk.unsupported_reason)
    if disk.storage != 'file' or disk.format not in FORMATS:
        # A volume that is open here could not be removed by Nova.
        raise _NotSampled(f'its root disk has the format {disk.format}, on '
                          f'{disk.storage} storage')
    # Not a work directory: if this command is killed, nobody has to recover
    # what is left here.
    with tempfile.TemporaryDirectory(
            prefix='nova-snapext-', ignore_cleanup_errors=True) as path:
        return bounded.call(lambda: _read(plan, path), TIMEOUT)


def _is_from_image(guest: ty.Any) -> bool:
    """Return whether a guest has no volume as its root disk.

    Nova writes it into the definition: LibvirtConfigGuestMetaNovaInstance in
    nova/virt/libvirt/config.py.
    """
    from lxml import etree
    definition = etree.fromstring(guest.get_xml_desc())
    return any(root.tag.startswith(f'{{{guests.METADATA}')
               for root in definition.xpath(
                   './metadata//*[local-name()="root"][@type="image"]'))


def _read(plan: ty.Any, path: str) -> _Sample:
    """Read and compress a sample.

    :param path: of a directory for qemu-nbd's socket
    :raises _NotSampled: Nova's user may not read the disk, or it is empty
    """
    from nova_snapext import exception
    from nova_snapext import read
    from nova_snapext.resources import nbd_export
    from nova_snapext.resources import work_directory
    if not os.access(plan.disk.path, os.R_OK):
        # Its owner is not changed, as it is for a snapshot.
        raise _NotSampled(f'Nova\'s user may not read {plan.disk.path}')
    directory = work_directory.WorkDirectory(path)
    export = nbd_export.NbdExport(plan.instance.uuid, directory)
    try:
        export.serve_unlocked(plan.disk, plan.guest)
        count, estimate = _estimate(
            read.unix_uri(directory.socket, plan.disk.target))
    except exception.DiskReadError as error:
        raise _NotSampled(f'its root disk could not be read within '
                          f'{SAMPLE_TIMEOUT} seconds: '
                          f'{error.kwargs["reason"]}') from error
    finally:
        export.release()
    if not estimate.mean:
        raise _NotSampled('its root disk has no data')
    return _Sample(plan.image_format, count, estimate)


def _estimate(uri: str) -> tuple[int, ty.Any]:
    """Compress a sample of an exported disk.

    :returns: the number of clusters with data, and an estimate of their size
    :raises DiskReadError: the disk can't be read, or takes too long
    """
    from oslo_utils import units

    from nova_snapext import conf
    from nova_snapext.encode import clusters
    from nova_snapext.encode import codec as codecs
    from nova_snapext.encode import streaming
    from nova_snapext import read
    snapext = conf.CONF.snapext
    codec = codecs.CODECS[codecs.type_in_use()](snapext.compression_level)
    with read.Disk(uri, SAMPLE_TIMEOUT,
                   snapext.read_rate_limit_mbps * units.Mi) as disk:
        timer = threading.Timer(SAMPLE_TIMEOUT, disk.abort)
        timer.daemon = True
        timer.start()
        try:
            found = clusters.ClusterMap.of_disk(disk)
            return len(found), streaming.estimate_size(
                disk, found, codec, CLUSTERS)
        finally:
            timer.cancel()
