# SPDX-License-Identifier: Apache-2.0
"""Make the guest images, and register them in Glance."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import hashlib
import pathlib
import shutil

from devcloud import api
from devcloud import guest_data
from devcloud import guest_image
from devcloud import layout
from devcloud import shell
from devcloud import state as cloud_state

#: The images are made again when one of these files changes.
BUILDERS = ('layout.py', 'guest_data.py', 'guest_image.py', 'images.py',
            'guest/init', 'guest/recorder.c', 'guest/shutdown')


@dataclasses.dataclass(frozen=True)
class Registration:
    """One image in Glance.

    :param name: its name
    :param file: name of its file, without suffix
    :param properties: for Nova: the guest's hardware
    :param store: Glance's store for its data; in `ceph` it is raw, so that
        Nova clones it
    """

    name: str
    file: str
    properties: Mapping[str, str]
    store: str = 'local'


#: The image has a guest agent.
AGENT = {'hw_qemu_guest_agent': 'yes'}

REGISTRATIONS = (
    Registration('snap-guest', 'snap-guest', AGENT),
    Registration('snap-guest-noagent', 'snap-guest', {}),
    Registration('snap-guest-mixed', 'snap-guest-mixed', AGENT),
    Registration('snap-guest-uefi', 'snap-guest', {
        **AGENT, 'hw_firmware_type': 'uefi', 'hw_machine_type': 'q35'}),
    Registration('snap-guest-scsi', 'snap-guest', {
        **AGENT, 'hw_disk_bus': 'scsi', 'hw_scsi_model': 'virtio-scsi'}),
    Registration('snap-guest-ide', 'snap-guest', {
        **AGENT, 'hw_disk_bus': 'ide'}),
)

#: Images of a cloud with Ceph, in addition.
CEPH_REGISTRATIONS = (
    Registration('snap-guest-ceph', 'snap-guest', AGENT, 'ceph'),
    Registration('snap-guest-ceph-noagent', 'snap-guest', {}, 'ceph'),
)


def build(state: cloud_state.State) -> dict[str, pathlib.Path]:
    """Make the missing images.

    :returns: their files, by name
    """
    here = pathlib.Path(__file__).parent
    digest = hashlib.sha256(b''.join(
        (here / name).read_bytes() for name in BUILDERS)).hexdigest()[:16]
    home = state.root / 'guest'
    target = home / digest
    files = {name: target / f'{name}.qcow2'
             for name in ('snap-guest', 'snap-guest-mixed')}
    if not target.exists():
        for stale in home.glob('*'):
            shutil.rmtree(stale)
        scratch = home / 'scratch'
        scratch.mkdir(parents=True)
        _build_small(scratch)
        _build_mixed(scratch)
        target.mkdir()
        for file in files.values():
            (scratch / file.name).rename(file)
        shutil.rmtree(scratch)
    return files


def _build_small(scratch: pathlib.Path) -> None:
    partitions = [layout.BOOT, layout.EXT4, layout.RECORDS]
    raw = scratch / 'small.raw'
    guest_image.build(raw, scratch, {}, partitions, layout.RECORDS.end)
    _convert(raw, scratch / 'snap-guest.qcow2')


def _build_mixed(scratch: pathlib.Path) -> None:
    partitions = [layout.BOOT, layout.EXT4, layout.RECORDS, layout.DATA]
    raw = scratch / 'mixed.raw'
    offsets = {'SEEK_ZERO': str(guest_data.GUEST_ZEROS),
               'SEEK_NOISE': str(guest_data.GUEST_NOISE)}
    guest_image.build(raw, scratch, offsets, partitions, layout.DATA.end)
    guest_data.write_stored(raw)
    qcow2 = scratch / 'snap-guest-mixed.qcow2'
    _convert(raw, qcow2)
    guest_data.write_zeros(qcow2)


def _convert(raw: pathlib.Path, qcow2: pathlib.Path) -> None:
    shell.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', '-t',
               'unsafe', '-T', 'unsafe', '-m', '4', '-W', raw, qcow2])
    raw.unlink()


def register(state: cloud_state.State,
             files: dict[str, pathlib.Path]) -> list[str]:
    """Upload the images, unless Glance has these versions already.

    :param files: the result of build()
    :returns: names of the uploaded images
    """
    uploaded = _register(state, 'images', REGISTRATIONS, files)
    if state.has_ceph:
        uploaded += _register(state, 'images-ceph', CEPH_REGISTRATIONS, files)
    return uploaded


def _register(state: cloud_state.State, step: str,
              registrations: tuple[Registration, ...],
              files: dict[str, pathlib.Path]) -> list[str]:
    wanted = repr((registrations, sorted(map(str, files.values()))))
    if state.is_done(step, wanted):
        return []
    admin = api.Client.admin(state)
    names = [one.name for one in registrations]
    for image in admin.get('glance', '/images?limit=1000')['images']:
        if image['name'] in names:
            admin.delete('glance', f'/images/{image["id"]}')
    for one in registrations:
        with _content(one, files[one.file]) as file:
            _upload(admin, one, file)
    state.mark_done(step, wanted)
    return names


@contextlib.contextmanager
def _content(one: Registration,
             file: pathlib.Path) -> Iterator[pathlib.Path]:
    """Return the file to upload: the qcow2 image, or a raw copy of it."""
    if one.store != 'ceph':
        yield file
        return
    raw = file.with_suffix('.raw')
    try:
        shell.run(['qemu-img', 'convert', '-O', 'raw', file, raw])
        yield raw
    finally:
        raw.unlink(missing_ok=True)


def _upload(admin: api.Client, one: Registration,
            file: pathlib.Path) -> None:
    image = admin.post('glance', '/images', {
        'name': one.name, 'disk_format': file.suffix.lstrip('.'),
        'visibility': 'public', 'container_format': 'bare',
        'os_type': 'linux', **one.properties})
    with open(file, 'rb') as content:
        admin.open('PUT', 'glance', f'/images/{image["id"]}/file', content, {
            'Content-Type': 'application/octet-stream',
            'Content-Length': str(file.stat().st_size),
            'X-Image-Meta-Store': one.store}).close()
