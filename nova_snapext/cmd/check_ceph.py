# SPDX-License-Identifier: Apache-2.0
"""Whether snapshots inside Ceph, and images in it, can end well on this host.

Nothing is created to find out: what a user may do in a pool is asked for by a
removal of what does not exist, and of Glance only its versions are read.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterator
import subprocess

# Nova and oslo's packages, and each module that imports them, are imported
# when a check runs: "nova-snapext check" reports that they are missing.

PACKAGES = 'python3-rbd and python3-rados'

#: An image that does not exist. Glance's images and Nova's disks have uuids.
NO_IMAGE = 'nova-snapext-check'

# librados' words for a client that is refused before it uses a pool: Rados
# .connect() in src/pybind/rados/rados.pyx.
NOT_CONNECTED = 'error connecting to the cluster'

# Seconds for qemu-nbd to fail.
PROGRAM_TIMEOUT = 30

#: For each check, whether it passed, and the text to print.
Finding = tuple[bool, str]


def ceph_findings(local: Collection[str] | None) -> Iterator[Finding]:
    """Run the checks of a host whose root disks, or images, are in Ceph.

    Nova's configuration has to be loaded. It needs the journal's directory,
    and so the rights of Nova's user or root.

    :param local: uuids of the guests of this host; None if not known
    :yields: nothing on other hosts
    """
    from nova_snapext import conf
    if conf.CONF.libvirt.images_type != 'rbd':
        if conf.CONF.snapext.rbd_image_user:
            yield from _copies(conf.CONF.snapext.rbd_image_user)
        return
    if not _has_bindings():
        yield False, _missing_bindings('The root disks are in Ceph')
        return
    yield _qemu_driver()
    disks = conf.CONF.libvirt.images_rbd_pool
    passed, text = _rights(disks)
    yield passed, text
    if not passed:
        return
    yield from _direct_way(local)
    yield from _snapshots_left(local)


def _has_bindings() -> bool:
    from nova_snapext.hypervisor import ceph
    return ceph.is_installed()


def _missing_bindings(need: str) -> str:
    """Return what to do for the bindings.

    :param need: what needs them
    """
    return (f'{need}, and the Python of nova-compute does not find Ceph\'s '
            f'bindings: install {PACKAGES}. A virtual environment finds them '
            f'if it was created with --system-site-packages.')


def _copies(user: str) -> Iterator[Finding]:
    """Check whether images of disks outside Ceph can be written into it.

    :param user: of Ceph, who writes them
    """
    from nova_snapext import conf
    pool = conf.CONF.snapext.rbd_image_pool
    if not pool:
        yield False, (
            '[snapext]rbd_image_user is set, and rbd_image_pool is not: set '
            'it to the pool of Glance\'s store. Until then, disks are '
            'streamed.')
        return
    image_format = conf.CONF.libvirt.snapshot_image_format
    if image_format != 'raw':
        yield True, (
            'only raw images are written into Ceph: those of disks in another '
            'format need [libvirt]snapshot_image_format = raw')
    if not _has_bindings():
        yield False, _missing_bindings('[snapext]rbd_image_user is set')
        return
    passed, text = _rights(pool, user)
    yield passed, text
    if passed:
        yield from _glance()


def _qemu_driver() -> Finding:
    """Check that qemu-nbd has the block driver for RBD."""
    from oslo_concurrency import processutils
    try:
        # It fails in any case, at once: there is no monitor to connect to.
        _output, errors = processutils.execute(
            'qemu-nbd', '--read-only', '--image-opts',
            f'driver=rbd,pool={NO_IMAGE},image={NO_IMAGE},conf=/dev/null',
            timeout=PROGRAM_TIMEOUT, check_exit_code=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, f'qemu-nbd could not be asked for its drivers: {error}'
    if "Unknown driver 'rbd'" in errors or 'Unknown protocol' in errors:
        return False, (
            'qemu-nbd has no driver for RBD: images that are not made inside '
            'Ceph can\'t be streamed. Install qemu-block-extra (Debian) or '
            'qemu-kvm-block-rbd (Red Hat).')
    return True, 'qemu-nbd has a driver for RBD'


def _rights(pool: str, other_user: str | None = None) -> Finding:
    """Check that Ceph responds, and that a user may write to a pool.

    :param other_user: None for [libvirt]rbd_user
    """
    from nova_snapext import conf
    from nova_snapext import exception
    from nova_snapext.hypervisor import ceph
    user = other_user or conf.CONF.libvirt.rbd_user or 'admin'
    try:
        ceph.check_writable(pool, other_user)
    except exception.CephError as error:
        if not ceph.is_forbidden(error):
            return False, str(error)
        if NOT_CONNECTED in str(error):
            return False, (
                f'Ceph does not let client.{user} in: Nova\'s user can\'t '
                f'read its key on this host, or Ceph has another one. "ceph '
                f'auth get client.{user}" shows what Ceph has; the keyring '
                f'that the ceph.conf of [libvirt]images_rbd_ceph_conf names '
                f'must have the same, and be readable by Nova\'s user.')
        return False, (
            f'client.{user} may not write to the Ceph pool {pool}. Give it '
            f'the OSD capability "profile rbd pool={pool}" with "ceph auth '
            f'caps", together with those that it has ("ceph auth get '
            f'client.{user}").')
    return True, f'client.{user} may write to the Ceph pool {pool}'


def _direct_way(local: Collection[str] | None) -> Iterator[Finding]:
    """Check whether images can be made inside Ceph.

    That nothing speaks for it is no failure: the disks are streamed.

    :param local: uuids of the guests of this host; None if not known
    """
    from nova_snapext import conf
    from nova_snapext import exception
    options = conf.CONF.snapext
    image_format = conf.CONF.libvirt.snapshot_image_format
    if image_format not in (None, 'raw'):
        yield True, (
            f'images are not made inside Ceph, but streamed, because '
            f'[libvirt]snapshot_image_format is {image_format}')
        return
    if not options.rbd_image_pool:
        yield True, (
            '[snapext]rbd_image_pool is not set: images are made inside Ceph '
            'only for disks that are clones of an image, and of guests whose '
            'image tells its location. If Glance keeps its images in this '
            'cluster, set it')
    try:
        pools = _parent_pools(local or ())
    except exception.CephError as error:
        yield False, str(error)
        return
    if options.rbd_image_pool:
        pools.add(options.rbd_image_pool)
    for pool in sorted(pools):
        yield _rights(pool)
    if pools:
        yield from _glance()


def _parent_pools(local: Collection[str]) -> set[str]:
    """Return the pools of the images that guests' disks are clones of.

    The images of these guests are made there, whatever the options say.

    :param local: uuids of guests
    :raises CephError: Ceph does not tell
    """
    from nova_snapext import conf
    from nova_snapext.hypervisor import ceph
    found = {ceph.parent_pool(ceph.ImageSpec(
        conf.CONF.libvirt.images_rbd_pool, f'{uuid}{ceph.DISK_SUFFIX}'))
        for uuid in local}
    return {pool for pool in found if pool is not None}


def _glance() -> Iterator[Finding]:
    from nova_snapext import conf
    from nova_snapext.upload import service_user
    reason = service_user.missing_reason()
    if reason is None:
        yield True, ('Nova sends a service token, and its user is not known '
                     f'to lack the role "{service_user.ROLE}"')
    else:
        yield False, f'{reason}. Until then, disks are streamed.'
    try:
        yield _location_api(conf.CONF.snapext.rbd_image_store)
    except Exception as error:
        yield False, (f'Glance does not tell whether it takes locations: '
                      f'{error}')


def _location_api(store: str | None) -> Finding:
    """Check that Glance takes locations, and has a store."""
    from nova_snapext import cancel
    from nova_snapext.upload import location
    from nova_snapext.upload import service_user
    token = cancel.CancelToken()
    with location.LocatedImage(
            service_user.context(token), NO_IMAGE, token) as image:
        if not image.needs_service():
            return True, (
                'Glance is older than release 29: it takes locations if its '
                'option show_multiple_locations is set, which is not checked')
        stores = image.stores()
    if store and store not in stores:
        return False, (
            f'[snapext]rbd_image_store is {store}, and Glance has the stores '
            f'{", ".join(stores) or "(none with a name)"}. Until that is '
            f'mended, disks are streamed.')
    return True, 'Glance has the API for locations'


def _snapshots_left(local: Collection[str] | None) -> Iterator[Finding]:
    """List the snapshots of ours that the journal does not have.

    :param local: uuids of the guests of this host; None if not known
    """
    from nova_snapext import exception
    from nova_snapext.hypervisor import ceph
    from nova_snapext.recovery import rbd_leftovers
    try:
        left = list(rbd_leftovers.without_journal())
    except (exception.SnapextError, OSError) as error:
        yield False, f'It is not known what is left in Ceph: {error}'
        return
    ours = [snapshot for snapshot in left if local is not None and
            snapshot.image.name.removesuffix(ceph.DISK_SUFFIX) in local]
    for snapshot in ours:
        yield False, (
            f'{snapshot} in Ceph is of a snapshot that the journal does not '
            f'have. Nova can\'t delete the disk before it is removed. Run '
            f'"nova-snapext recover" while nova-compute is stopped.')
    others = [snapshot for snapshot in left if snapshot not in ours]
    if others:
        yield True, (
            f'Ceph has snapshots of guests that are not on this host, which '
            f'may be in progress: {", ".join(map(str, others))}. If Nova has '
            f'deleted the instance, "nova-snapext recover" removes them')
    if not left:
        yield True, 'no snapshot of nova-snapext is left in Ceph'
