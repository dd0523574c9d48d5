# SPDX-License-Identifier: Apache-2.0

import os
import subprocess
import sys
from unittest import mock

from nova_snapext import freeze
from nova_snapext.freeze import backup
from nova_snapext.freeze import cold
from nova_snapext.freeze import external
from nova_snapext.freeze import internal
from tests.unit import base

# In a process of its own: eventlet's patches are for good.
TIMES_OUT = """
from nova import monkey_patch
monkey_patch.patch(backend='{}')
from oslo_concurrency import processutils
from nova_snapext.freeze import base
try:
    processutils.execute('sleep', '60', timeout=0.1)
except base.FREEZE_ERRORS as error:
    print(type(error).__name__)
"""


class FreezeErrorsTest(base.TestCase):

    def test_a_program_that_takes_too_long_is_one_in_both_modes(self):
        environment = {name: value for name, value in os.environ.items()
                       if name != 'OS_NOVA_DISABLE_EVENTLET_PATCHING'}
        for backend in ('threading', 'eventlet'):
            printed = subprocess.run(
                [sys.executable, '-W', 'ignore', '-c',
                 TIMES_OUT.format(backend)], env=environment, check=True,
                capture_output=True, text=True).stdout
            self.assertEqual('TimeoutExpired\n', printed)


DISKS = """<domain><devices>
<disk type='file' device='disk'>
  <driver name='qemu' type='qcow2'/><source file='/i/disk'/>
  <target dev='vda' bus='virtio'/>
</disk>
<disk type='file' device='disk'>
  <driver name='qemu' type='qcow2'/><source file='/e/disk.eph0'/>
  <target dev='vdb' bus='virtio'/>
</disk>
</devices></domain>"""


class FillingTest(base.TestCase):
    """Where there has to be space while the disk is frozen."""

    def filling(self, strategy, **plan):
        self.flags(instances_path='/instances')
        self.flags(freeze_directory='/scratch', group='snapext')
        return strategy(mock.MagicMock()).filling(
            self.plan(domain_xml=DISKS, **plan))

    def test_a_backup_fills_where_its_scratch_file_is(self):
        self.assertEqual(('/scratch',), self.filling(backup.BackupStrategy))

    def test_an_overlay_fills_the_instance_s_directory(self):
        for strategy in (external.ExternalStrategy, cold.ColdStrategy):
            [path] = self.filling(strategy)
            self.assertEqual('/instances', os.path.dirname(path))

    def test_a_guest_that_is_shut_off_writes_nothing(self):
        self.assertEqual((), self.filling(cold.ColdStrategy, running=False))

    def test_inside_the_disks_each_of_them_fills(self):
        self.assertEqual(('/i/disk', '/e/disk.eph0'),
                         self.filling(internal.InternalStrategy))

    def test_of_a_strategy_that_does_not_tell_nothing_is_known(self):
        class Plain(freeze.FreezingStrategy):
            name = 'plain'
            _reason_against = _freeze = None

        self.assertEqual((), self.filling(Plain))
