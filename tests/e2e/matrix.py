# SPDX-License-Identifier: Apache-2.0
"""Strategy x guest state x root disk x image format, cell by cell.

What a cell does is written to the file that SNAPEXT_MATRIX_RESULTS names, as
a line of JSON. As a program this module renders such a file for the docs::

    python -m tests.e2e.matrix RESULTS > doc/source/admin/matrix.rst
"""

import itertools
import json
import os
import re
import sys

from devcloud import errors
from devcloud import servers

from tests.e2e import base

STRATEGIES = ('backup', 'external', 'internal', 'cold', 'native')

#: What brings a running guest into a state, what its status is then, and what
#: makes it run again.
STATES = {
    'running': None,
    'paused': ('pause', 'PAUSED', 'unpause'),
    'suspended': ('suspend', 'SUSPENDED', 'resume'),
    'stopped': ('os-stop', 'SHUTOFF', 'os-start'),
}

#: Root disks, by the configuration that makes them.
DISKS = {
    'qcow2 on a backing file': (),
    # Nova copies the image as it is, with no backing file.
    'flat qcow2': ('libvirt.images_type=flat',
                   'DEFAULT.force_raw_images=False'),
    'raw file': ('libvirt.images_type=raw',),
    'block device': ('libvirt.images_type=lvm',),
}

#: What their definition has to hold, as a regular expression.
DEFINITIONS = {
    'qcow2 on a backing file': r"type='file'(.|\n)*type='qcow2'"
                               r"(.|\n)*<backingStore type='file'",
    'flat qcow2': r"type='file'(.|\n)*type='qcow2'(.|\n)*<backingStore/>",
    'raw file': r"type='file'(.|\n)*type='raw'",
    'block device': r"type='block'(.|\n)*type='raw'",
}

#: Image formats, by the configuration that asks for them.
FORMATS = {
    'qcow2': ('libvirt.snapshot_image_format=qcow2',),
    'compressed qcow2': ('libvirt.snapshot_image_format=qcow2',
                         'libvirt.snapshot_compression=True'),
    'raw': ('libvirt.snapshot_image_format=raw',),
    'vmdk': ('libvirt.snapshot_image_format=vmdk',),
    'vdi': ('libvirt.snapshot_image_format=vdi',),
}

PASSED_OVER = 'snapext.requestable=' + ','.join(STRATEGIES)


def refusal(strategy, state, disk):
    """Give the reason that refuses a cell; None where it is served."""
    if strategy in ('backup', 'external') and state in ('suspended',
                                                        'stopped'):
        return 'the guest is shut off'
    if strategy == 'internal' and disk == 'raw file':
        return 'its root disk has the format raw'
    if strategy == 'internal' and disk == 'block device':
        return 'its root disk is on block storage'
    return None


def consistency(strategy, state):
    """Give what the image has to say of itself."""
    if strategy == 'native':
        return None
    if state == 'stopped':
        return 'offline'
    if state == 'running' and strategy != 'cold':
        return 'filesystem'
    return 'crash'


class MatrixTestCase(base.CloudTestCase):
    """The cells of one root disk.

    :cvar DISK: one of DISKS
    :cvar MORE: further configuration
    :cvar BOOTED: whether the images of a running guest are booted, too
    """

    DISK = ''
    MORE: tuple[str, ...] = ()
    BOOTED = False

    @classmethod
    def setUpClass(cls):
        cls.CONFIGURATION = (PASSED_OVER, *DISKS[cls.DISK], *cls.MORE)
        super().setUpClass()
        # Its own image: Nova has not cached it yet, as it does in another
        # format for other kinds of disk.
        cls.server = cls.boot(cls.copy_image('snap-guest'))
        definition = cls.host.virsh('dumpxml', cls.server)
        disk = definition[definition.index('<disk'):]
        if not re.search(DEFINITIONS[cls.DISK],
                         disk[:disk.index('</disk>')]):
            raise AssertionError(f'{disk} is not a {cls.DISK}')

    def setUp(self):
        # Past CloudTestCase, which would go back to the class's own
        # configuration: each row has one of its own, often the last one's.
        super(base.CloudTestCase, self).setUp()

    def row(self, state, image_format):
        """Take all strategies in turn on a guest in a state."""
        self.configure(*FORMATS[image_format])
        if STATES[state]:
            enter, status, leave = STATES[state]
            self.action(self.server, enter, status)
            self.addCleanup(self.await_records, self.server, 1)
            self.addCleanup(self.action, self.server, leave, 'ACTIVE')
        failures = {}
        for strategy in STRATEGIES:
            try:
                self.cell(strategy, state, image_format)
            except (AssertionError, errors.CloudError) as failure:
                failures[strategy] = failure
        for strategy, failure in failures.items():
            raise AssertionError(
                f'{strategy}, the first of {list(failures)}') from failure

    def cell(self, strategy, state, image_format):
        reason = refusal(strategy, state, self.DISK)
        status = servers.show(self.client, self.server)['status']
        definition = self.host.virsh('dumpxml', '--inactive', self.server)
        shot = self.snapshot(self.server, strategy=strategy)
        result = {'strategy': strategy, 'state': state, 'disk': self.DISK,
                  'format': image_format}
        if reason:
            self.assert_refused(shot, strategy, reason)
            result['refused'] = reason
        else:
            result['consistency'] = self.assert_served(
                shot, strategy, state, image_format)
            if self.BOOTED and state == 'running':
                self.assert_boots(shot)
                result['booted'] = True
            self.client.delete('glance', f'/images/{shot.image}')
        self.assertEqual(
            status, servers.show(self.client, self.server)['status'])
        self.assertEqual(
            definition, self.host.virsh('dumpxml', '--inactive', self.server))
        self.assert_nothing_left(self.server)
        if state == 'running':
            self.assert_writes_on(self.server)
        record(result)

    def assert_refused(self, shot, strategy, reason):
        self.assertFalse(self.image_exists(shot.image))
        self.assertIn(f'{strategy}: {reason}', self.failure(self.server))
        self.assertEqual(0, shot.host_space)

    def assert_served(self, shot, strategy, state, image_format):
        image = self.image(shot.image)
        self.assertEqual(strategy, image['snapshot_strategy'])
        self.assertEqual(consistency(strategy, state),
                         image.get('snapshot_consistency'))
        self.assertNotIn('snapext_strategy', image)
        self.assert_snapshot_right(shot, image_format.split()[-1])
        return image.get('snapshot_consistency')

    def assert_boots(self, shot):
        last = self.assert_image_whole(
            shot.image, self.image(shot.image)['disk_format']).records.last
        second = self.boot(shot.image, add_cleanup=self.addCleanup)
        self.assert_boots_with_records(second, last)


def record(result):
    path = os.environ.get('SNAPEXT_MATRIX_RESULTS')
    if path:
        with open(path, 'a') as results:
            results.write(f'{json.dumps(result)}\n')


HEADER = '''\
..
    Made from the results of `tools/test matrix` by tests/e2e/matrix.py.

.. list-table::
   :header-rows: 1

   * - Strategy
     - Guest
'''


def render(results):
    """Give the matrix as reStructuredText.

    :param results: of cells, as they were recorded
    """
    cells = {(one['strategy'], one['state'], one['disk'], one['format']): one
             for one in results}
    disks = [disk for disk in DISKS
             if any(disk == key[2] for key in cells)]
    reasons = []
    lines = [HEADER.rstrip('\n'), *(f'     - {disk}' for disk in disks)]
    for strategy, state in itertools.product(STRATEGIES, STATES):
        lines += [f'   * - ``{strategy}``', f'     - {state}']
        for disk in disks:
            done = [cells[strategy, state, disk, image_format]
                    for image_format in FORMATS
                    if (strategy, state, disk, image_format) in cells]
            lines.append(f'     - {_entry(done, reasons)}'.rstrip())
    served = [one for one in cells.values() if 'refused' not in one]
    booted = [one for one in served if one.get('booted')]
    lines += [
        '', f'{len(cells)} cells were run: {len(served)} made an image that '
        f'was proved by its content, {len(booted)} of them booted as well; '
        f'{len(cells) - len(served)} were refused with their reason, and '
        f'nothing touched.', '',
        *(f'{number}. {reason}'
          for number, reason in enumerate(reasons, start=1)), '']
    return '\n'.join(lines)


def _entry(done, reasons):
    """Give what stands in the table for the formats of a cell."""
    refused = {one['refused'] for one in done if 'refused' in one}
    if refused:
        [reason] = refused
        if reason not in reasons:
            reasons.append(reason)
        return f'refused ({reasons.index(reason) + 1})'
    formats = [one['format'] for one in done]
    names = ('all formats' if formats == list(FORMATS)
             else ', '.join(formats) or 'not run')
    kinds = {one['consistency'] for one in done} - {None}
    return f'{names}: {kinds.pop()}' if kinds else names


if __name__ == '__main__':
    with open(sys.argv[1]) as lines:
        print(render(map(json.loads, lines)), end='')
