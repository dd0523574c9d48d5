# SPDX-License-Identifier: Apache-2.0

from lxml import etree

from nova_snapext.freeze import chain
from nova_snapext import plan as planning
from tests.unit import base

DOMAIN = """
<domain><devices>
  <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
  <disk type='file' device='disk'>
    <driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
    <source file='/i/overlay' index='4'><seclabel model='dac'/></source>
    <backingStore type='block' index='2'>
      <format type='raw'/>
      <source dev='/dev/vg/disk'/>
      <backingStore/>
    </backingStore>
    <target dev='vda' bus='virtio'/>
    <alias name='virtio-disk0'/>
  </disk>
</devices></domain>
"""


class ChainTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.disk = chain.find_disk(DOMAIN, 'vda')

    def test_all_disks_are_listed_drives_without_a_medium_too(self):
        self.assertEqual(['sda', 'vda'], chain.targets_of(DOMAIN))

    def test_a_disk_that_is_not_there_is_an_error_that_names_it(self):
        self.assertIn('vdb', str(self.assertRaises(
            ValueError, chain.find_disk, DOMAIN, 'vdb')))

    def test_the_chain_goes_from_the_active_one_down(self):
        self.assertEqual(['/i/overlay', '/dev/vg/disk'],
                         chain.paths_of(self.disk))

    def test_an_empty_drive_has_no_path(self):
        self.assertEqual([None],
                         chain.paths_of(chain.find_disk(DOMAIN, 'sda')))

    def test_a_disk_is_put_on_a_device_and_all_else_of_it_stays(self):
        chain.put_on(self.disk, planning.RootDisk(
            target='vda', storage='block', path='/dev/vg/disk',
            format='raw'))
        expected = """
          <disk type='block' device='disk'>
            <driver name='qemu' type='raw' cache='none' discard='unmap'/>
            <source dev='/dev/vg/disk'><seclabel model='dac'/></source>
            <target dev='vda' bus='virtio'/>
            <alias name='virtio-disk0'/>
          </disk>"""
        actual = etree.tostring(self.disk, encoding='unicode',
                                with_tail=False)
        self.assertEqual(*(etree.canonicalize(xml, strip_text=True)
                           for xml in (expected, actual)))
