# SPDX-License-Identifier: Apache-2.0
"""The guests of the benchmark: their images, and what is seen of them."""

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

#: Images are called this and the case's name.
PREFIX = 'snap-bench-'

#: Property of an image that tells from what it was made.
DIGEST = 'bench_digest'

PROGRAMS = pathlib.Path(__file__).with_name('guest_programs')

#: Milliseconds between two records, as the guests of the tests have them.
INTERVAL = 60


class Console(watch.Console):
    """Follows what a guest of the benchmark says.

    :ivar loads: when the guest said how much it has rewritten, and that
    """

    LOAD = re.compile(r'^LOAD (\d+)\r?$')

    def __init__(self, log: pathlib.Path) -> None:
        super().__init__(log)
        self.loads: list[tuple[float, int]] = []
        self._told = 0

    def look(self) -> None:
        super().look()
        for line in self.lines[self._told:]:
            if found := self.LOAD.match(line):
                self.loads.append((time.monotonic(), int(found[1])))
        self._told = len(self.lines)

    def pause(self, begin: float, end: float) -> float | None:
        """The longest time without a new record, by our clock.

        Records that are repeated count once: a restored guest's console
        shows old ones again. The guest's own clock is of no use, as it
        stands still while the guest does.

        :param begin: on our monotonic clock, as the end
        :returns: seconds; None if there is no record
        """
        times = self._times(begin, end)
        if not times:
            return None
        return max(later - earlier for earlier, later in itertools.pairwise(
            [begin, *times, end]))

    def rate(self, begin: float, end: float) -> float | None:
        """New records a second, each of them on disk."""
        return len(self._times(begin, end)) / (end - begin)

    def load_rate(self, begin: float, end: float) -> float | None:
        """Bytes a second that the guest rewrites; None if it does not."""
        known = [(when, written) for when, written in list(self.loads)
                 if begin <= when <= end]
        if len(known) < 2:
            return None
        (first, low), (last, high) = known[0], known[-1]
        return (high - low) / (last - first)

    def _times(self, begin: float, end: float) -> list[float]:
        last, times = 0, []
        for one in list(self.seen):
            if one.number > last:
                last = one.number
                if begin <= one.when <= end:
                    times.append(one.when)
        return times


def image(state: cloud_state.State, case: cases.Case) -> str:
    """Give a case's image in Glance, made if it is missing.

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
    with tempfile.TemporaryDirectory(dir=state.root) as place:
        file = build(base, case, pathlib.Path(place))
        return register(admin, name, file, {
            **images.AGENT, DIGEST: digest, 'visibility': 'public'})


def register(client: api.Client, name: str, file: pathlib.Path,
             properties: dict[str, str]) -> str:
    """Upload a qcow2 file as a new image.

    :returns: its id
    """
    made = client.post('glance', '/images', {
        'name': name, 'disk_format': 'qcow2', 'container_format': 'bare',
        'os_type': 'linux', **properties})['id']
    with open(file, 'rb') as body:
        client.open('PUT', 'glance', f'/images/{made}/file', body, {
            'Content-Type': 'application/octet-stream',
            'Content-Length': str(file.stat().st_size)}).close()
    return made


def build(base: pathlib.Path, case: cases.Case, scratch: pathlib.Path
          ) -> pathlib.Path:
    """Make a case's image of the small guest's.

    :param base: image of the small guest
    :param scratch: directory for it
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
    # All that the guest rewrites is there from the beginning.
    content.noise(raw, layout.RECORDS.offset, 4 * layout.MIB)
    if case.rewrites:
        content.noise(raw, data.offset + span, cases.REWRITTEN)
    _give_programs(raw, case.rewrites, scratch)
    target = scratch / 'disk.qcow2'
    shell.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', '-t',
               'unsafe', '-T', 'unsafe', raw, target])
    raw.unlink()
    return target


def _give_programs(raw: pathlib.Path, rate: int, scratch: pathlib.Path
                   ) -> None:
    """Have the guest beat in place of keeping records: its disk won't grow.

    The initial RAM disk gets a second archive, whose files replace those of
    the first, as the kernel unpacks one after the other.

    :param rate: bytes a second of the end of its disk that it rewrites
    """
    tree = scratch / 'initramfs'
    (tree / 'bin').mkdir(parents=True)
    for name in ('beat', 'load'):
        shell.run(['gcc', '-static', '-O2', '-o', tree / 'bin' / name,
                   PROGRAMS / f'{name}.c'])
    commands = f'beat ${{disk}}3 /data/beat {INTERVAL} &'
    if rate:
        commands += f'\nload ${{disk}}4 {cases.REWRITTEN} {rate} &'
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
        # Each archive begins on a multiple of four bytes.
        target.write(bytes(-target.tell() % 4) + more.read_bytes())
    shell.run(['mcopy', '-o', '-i', boot, initrd, '::initrd'])
    shutil.rmtree(tree)


def _digest(base: pathlib.Path, case: cases.Case) -> str:
    """Of all that decides what an image holds."""
    here = pathlib.Path(__file__)
    parts = [str(base).encode(), repr((
        case.disk, case.data, case.rewrites)).encode(),
        inspect.getsource(case.fill).encode()]
    parts += [path.read_bytes() for path in (
        here, here.with_name('content.py'), *sorted(PROGRAMS.iterdir()))]
    return hashlib.sha256(b''.join(parts)).hexdigest()[:16]
