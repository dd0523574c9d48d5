# SPDX-License-Identifier: Apache-2.0
"""The guests of the benchmark: their images, and their consoles."""

import hashlib
import inspect
import itertools
import os
import pathlib
import re
import shutil
import tempfile
import time

from devcloud import api
from devcloud import images
from devcloud import layout
from devcloud import shell
from devcloud import state as cloud_state
from devcloud import watch

from devbench import cases
from devbench import content

#: An image's name is this and the case's name.
PREFIX = 'snap-bench-'

#: Property of an image: the digest of its sources.
DIGEST = 'bench_digest'

PROGRAMS = pathlib.Path(__file__).with_name('guest_programs')

#: Milliseconds between two records, the same as in the guests of the tests.
INTERVAL = 60


class Console(watch.Console):
    """Reads the console log of a guest of the benchmark.

    :ivar loads: pairs of time and total bytes that the guest has rewritten
    """

    LOAD = re.compile(r'^LOAD (\d+)\r?$')

    def __init__(self, log: pathlib.Path) -> None:
        super().__init__(log)
        self.loads: list[tuple[float, int]] = []
        self._read = 0

    def poll(self) -> None:
        super().poll()
        for line in self.lines[self._read:]:
            if found := self.LOAD.match(line):
                self.loads.append((time.monotonic(), int(found[1])))
        self._read = len(self.lines)

    def pause(self, begin: float, end: float) -> float | None:
        """Return the longest time without a new record, by our clock.

        Repeated records count once: the console of a restored guest shows old
        records again. The guest's own clock cannot be used: it stops with the
        guest.

        :param begin: on our monotonic clock, like the end
        :returns: seconds; None if there is no record
        """
        times = self._times(begin, end)
        if not times:
            return None
        return max(later - earlier for earlier, later in itertools.pairwise(
            [begin, *times, end]))

    def rate(self, begin: float, end: float) -> float | None:
        """Return the number of new records a second, all of them on disk."""
        return len(self._times(begin, end)) / (end - begin)

    def load_rate(self, begin: float, end: float) -> float | None:
        """Return the bytes a second that the guest rewrites, or None."""
        known = [(when, written) for when, written in list(self.loads)
                 if begin <= when <= end]
        if len(known) < 2:
            return None
        (first, low), (last, high) = known[0], known[-1]
        return (high - low) / (last - first)

    def _times(self, begin: float, end: float) -> list[float]:
        last, times = 0, []
        for one in list(self.records):
            if one.number > last:
                last = one.number
                if begin <= one.when <= end:
                    times.append(one.when)
        return times


def image(state: cloud_state.State, case: cases.Case) -> str:
    """Return a case's image in Glance; make and upload it if missing.

    :returns: its id
    """
    admin = api.Client.admin(state)
    base = images.build(state)['snap-guest']
    digest = _digest(base, case)
    name = f'{PREFIX}{case.name}'
    for one in admin.get('glance', f'/images?name={name}')['images']:
        if one.get(DIGEST) == digest and one['status'] == 'active':
            return one['id']
        admin.delete('glance', f'/images/{one["id"]}')
    with tempfile.TemporaryDirectory(dir=state.root) as directory:
        file = build(base, case, pathlib.Path(directory))
        return register(admin, name, file, {
            **images.AGENT, DIGEST: digest, 'visibility': 'public'})


def register(client: api.Client, name: str, file: pathlib.Path,
             properties: dict[str, str]) -> str:
    """Upload a qcow2 file as a new image.

    :returns: its id
    """
    image_id = client.post('glance', '/images', {
        'name': name, 'disk_format': 'qcow2', 'container_format': 'bare',
        'os_type': 'linux', **properties})['id']
    with open(file, 'rb') as body:
        client.open('PUT', 'glance', f'/images/{image_id}/file', body, {
            'Content-Type': 'application/octet-stream',
            'Content-Length': str(file.stat().st_size)}).close()
    return image_id


def build(base: pathlib.Path, case: cases.Case, scratch: pathlib.Path
          ) -> pathlib.Path:
    """Make a case's image from the image of the small guest.

    :param base: image of the small guest
    :param scratch: directory for the image
    :returns: a qcow2 file
    """
    raw = scratch / 'disk.raw'
    shell.run(['qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', base, raw])
    size = case.disk << 30
    data = layout.Partition(layout.DATA.kind, layout.RECORDS.end,
                            size - layout.RECORDS.end)
    os.truncate(raw, size)
    with open(raw, 'r+b') as disk:
        code = disk.read(440)
        disk.seek(0)
        disk.write(layout.boot_record(
            [layout.BOOT, layout.EXT4, layout.RECORDS, data], code))
    span = data.size - (cases.REWRITTEN if case.rewrites else 0)
    case.fill(raw, data.offset, span, case.data, scratch)
    # Allocate all blocks that the guest rewrites.
    content.noise(raw, layout.RECORDS.offset, 4 * layout.MIB)
    if case.rewrites:
        content.noise(raw, data.offset + span, cases.REWRITTEN)
    _add_programs(raw, case, scratch)
    target = scratch / 'disk.qcow2'
    shell.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', '-t',
               'unsafe', '-T', 'unsafe', raw, target])
    raw.unlink()
    return target


def _add_programs(raw: pathlib.Path, case: cases.Case,
                  scratch: pathlib.Path) -> None:
    """Replace the guest's recorder by `beat`, so that its disk won't grow.

    The initial RAM disk gets a second archive. Its files replace those of the
    first archive, because the kernel unpacks one after the other.
    """
    tree = scratch / 'initramfs'
    (tree / 'bin').mkdir(parents=True)
    for name in ('beat', 'load'):
        shell.run(['gcc', '-static', '-O2', '-o', tree / 'bin' / name,
                   PROGRAMS / f'{name}.c'])
    commands = f'beat ${{disk}}3 /data/beat {INTERVAL} &'
    if case.rewrites:
        commands += f'\nload ${{disk}}4 {cases.REWRITTEN} {case.rewrites} &'
    if case.is_busy:
        commands += '\nwhile :; do :; done &'
    init = (images.guest_image.SOURCES / 'init').read_text()
    recorder = re.search(r'(?m)^recorder .*$', init)
    assert recorder is not None
    shell.write(tree / 'init', init.replace(recorder[0], commands),
                mode=0o755)
    more = scratch / 'more'
    shell.run(['sh', '-c', 'find . | cpio -o -H newc --quiet -R 0:0 '
               '| gzip -9 > "$1"', 'sh', more], cwd=tree)
    boot = f'{raw}@@{layout.BOOT.offset}'
    initrd = scratch / 'initrd'
    shell.run(['mcopy', '-o', '-i', boot, '::initrd', initrd])
    with open(initrd, 'ab') as target:
        # Each archive starts at a multiple of four bytes.
        target.write(bytes(-target.tell() % 4) + more.read_bytes())
    shell.run(['mcopy', '-o', '-i', boot, initrd, '::initrd'])
    shutil.rmtree(tree)


def _digest(base: pathlib.Path, case: cases.Case) -> str:
    """Return a digest of all sources of an image."""
    here = pathlib.Path(__file__)
    parts = [str(base).encode(), repr((
        case.disk, case.data, case.rewrites, case.is_busy)).encode(),
        inspect.getsource(case.fill).encode()]
    parts += [path.read_bytes() for path in (
        here, here.with_name('content.py'), *sorted(PROGRAMS.iterdir()))]
    return hashlib.sha256(b''.join(parts)).hexdigest()[:16]
