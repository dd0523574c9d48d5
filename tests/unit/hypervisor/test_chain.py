# SPDX-License-Identifier: Apache-2.0

from lxml import etree

from nova_snapext import exception
from nova_snapext.hypervisor import chain
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

    def test_empty_drive_is_listed_among_disks(self):
        self.assertEqual(['sda', 'vda'], chain.targets_of(DOMAIN))

    def test_missing_disk_is_named_in_error(self):
        self.assertIn('vdb', str(self.assertRaises(
            exception.UnexpectedState, chain.find_disk, DOMAIN, 'vdb')))

    def test_chain_is_listed_from_active_image_down(self):
        self.assertEqual(['/i/overlay', '/dev/vg/disk'],
                         chain.paths_of(self.disk))

    def test_chain_is_written_with_active_image_last(self):
        self.assertEqual('/dev/vg/disk <- /i/overlay',
                         chain.text(chain.paths_of(self.disk)))

    def test_empty_drive_has_no_path(self):
        self.assertEqual([None],
                         chain.paths_of(chain.find_disk(DOMAIN, 'sda')))

    def test_new_source_replaces_path_and_format_only(self):
        chain.set_source(self.disk, planning.RootDisk(
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
