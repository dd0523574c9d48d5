# SPDX-License-Identifier: Apache-2.0
"""Every combination of strategy, guest state, root disk and image format.

Each combination is a cell of the matrix. Its result is a line of JSON in the
file that SNAPEXT_MATRIX_RESULTS names. As a program this module renders such a
file for the docs::

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

#: For each state: the action that brings a running guest into it, the status
#: in it, and the action that makes the guest run again.
STATES = {
    'running': None,
    'paused': ('pause', 'PAUSED', 'unpause'),
    'suspended': ('suspend', 'SUSPENDED', 'resume'),
    'stopped': ('os-stop', 'SHUTOFF', 'os-start'),
}

#: The configuration that makes Nova create a kind of root disk.
DISKS = {
    'qcow2 on a backing file': (),
    # Nova copies the image unchanged, without a backing file.
    'flat qcow2': ('libvirt.images_type=flat',
                   'DEFAULT.force_raw_images=False'),
    'raw file': ('libvirt.images_type=raw',),
    'block device': ('libvirt.images_type=lvm',),
}

#: The regular expression that matches the definition of a kind of root disk.
DEFINITIONS = {
    'qcow2 on a backing file': r"type='file'(.|\n)*type='qcow2'"
                               r"(.|\n)*<backingStore type='file'",
    'flat qcow2': r"type='file'(.|\n)*type='qcow2'(.|\n)*<backingStore/>",
    'raw file': r"type='file'(.|\n)*type='raw'",
    'block device': r"type='block'(.|\n)*type='raw'",
}

#: The configuration that selects an image format.
FORMATS = {
    'qcow2': ('libvirt.snapshot_image_format=qcow2',),
    'compressed qcow2': ('libvirt.snapshot_image_format=qcow2',
                         'libvirt.snapshot_compression=True'),
    'raw': ('libvirt.snapshot_image_format=raw',),
    'vmdk': ('libvirt.snapshot_image_format=vmdk',),
    'vdi': ('libvirt.snapshot_image_format=vdi',),
}

#: The configuration that allows users to request every strategy.
ALLOW_ALL = 'snapext.allowed_image_strategies=' + ','.join(STRATEGIES)


def refusal(strategy, state, disk):
    """Return why a strategy refuses a cell; None if it supports the cell."""
    if strategy in ('backup', 'external') and state in ('suspended',
                                                        'stopped'):
        return 'the guest is shut off'
    if strategy == 'internal' and disk == 'raw file':
        return 'its root disk has the format raw'
    if strategy == 'internal' and disk == 'block device':
        return 'its root disk is on block storage'
    return None


def consistency(strategy, state):
    """Return the consistency that the image has to show."""
    if strategy == 'native':
        return None
    if state == 'stopped':
        return 'offline'
    if state == 'running' and strategy != 'cold':
        return 'filesystem'
    return 'crash'


class MatrixTestCase(base.CloudTestCase):
    """The cells of one kind of root disk.

    :cvar DISK: a key of DISKS
    :cvar MORE: further configuration
    :cvar BOOTED: whether the images of a running guest are booted too
    """

    DISK = ''
    MORE: tuple[str, ...] = ()
    BOOTED = False

    @classmethod
    def setUpClass(cls):
        cls.CONFIGURATION = (ALLOW_ALL, *DISKS[cls.DISK], *cls.MORE)
        super().setUpClass()
        # An image of its own: Nova may have cached the other one in the
        # format of another kind of disk.
        cls.server = cls.boot(cls.copy_image('snap-guest'))
        definition = cls.host.virsh('dumpxml', cls.server)
        disk = definition[definition.index('<disk'):]
        if not re.search(DEFINITIONS[cls.DISK],
                         disk[:disk.index('</disk>')]):
            raise AssertionError(f'{disk} is not a {cls.DISK}')

    def setUp(self):
        # Without CloudTestCase.setUp, which would restore the configuration
        # of the class: each row configures its own, often that of the last
        # row.
        super(base.CloudTestCase, self).setUp()

    def row(self, state, image_format):
        """Take a snapshot with each strategy, of a guest in one state."""
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
        snapshot = self.snapshot(self.server, strategy=strategy)
        result = {'strategy': strategy, 'state': state, 'disk': self.DISK,
                  'format': image_format}
        if reason:
            self.assert_refused(snapshot, strategy, reason)
            result['refused'] = reason
        else:
            result['consistency'] = self.assert_supported(
                snapshot, strategy, state, image_format)
            if self.BOOTED and state == 'running':
                self.assert_boots(snapshot)
                result['booted'] = True
            self.client.delete('glance', f'/images/{snapshot.image}')
        self.assertEqual(
            status, servers.show(self.client, self.server)['status'])
        self.assertEqual(
            definition, self.host.virsh('dumpxml', '--inactive', self.server))
        self.assert_nothing_left(self.server)
        if state == 'running':
            self.assert_keeps_writing(self.server)
        record(result)

    def assert_refused(self, snapshot, strategy, reason):
        self.assertFalse(self.image_exists(snapshot.image))
        self.assertIn(f'{strategy}: {reason}', self.refusal_text(self.server))
        self.assertEqual(0, snapshot.host_space)

    def assert_supported(self, snapshot, strategy, state, image_format):
        image = self.image(snapshot.image)
        self.assertEqual(strategy, image['snapext_strategy_used'])
        self.assertEqual(consistency(strategy, state),
                         image.get('snapext_consistency'))
        self.assertNotIn('snapext_strategy', image)
        self.assert_snapshot_complete(snapshot, image_format.split()[-1])
        return image.get('snapext_consistency')

    def assert_boots(self, snapshot):
        image_format = self.image(snapshot.image)['disk_format']
        last = self.assert_image_complete(
            snapshot.image, image_format).records.last
        second = self.boot(snapshot.image, add_cleanup=self.addCleanup)
        self.assert_boots_with_records(second, last)


def record(result):
    path = os.environ.get('SNAPEXT_MATRIX_RESULTS')
    if path:
        with open(path, 'a') as results:
            results.write(f'{json.dumps(result)}\n')


HEADER = '''\
..
    Generated from the results of ``tools/test matrix`` by
    tests/e2e/matrix.py.

.. list-table::
   :header-rows: 1

   * - Strategy
     - Guest
'''


def render(results):
    """Return the matrix as reStructuredText.

    :param results: results of cells, as they were recorded
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
    supported = [one for one in cells.values() if 'refused' not in one]
    booted = [one for one in supported if one.get('booted')]
    lines += [
        '', f'{len(cells)} cells were run. {len(supported)} created an '
        f'image, and its content was checked; {len(booted)} of these images '
        f'were also booted. {len(cells) - len(supported)} were refused with '
        f'a reason, and nothing was changed.', '',
        *(f'{number}. {reason}'
          for number, reason in enumerate(reasons, start=1)), '']
    return '\n'.join(lines)


def _entry(done, reasons):
    """Return the text of a table cell, for all its image formats."""
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
