# SPDX-License-Identifier: Apache-2.0
"""What the unit tests share."""

from unittest import mock

import fixtures
from nova import test
from nova.tests.unit import fake_instance
from nova.virt.libvirt import guest as libvirt_guest

from nova_snapext import conf
from nova_snapext import plan as planning

IMAGE_ID = 'c2c5d0ab-8a1c-4ac7-8b27-0ee2bd0e6d3b'

QCOW2 = planning.RootDisk(target='vda', storage='file', path='/i/disk',
                          format='qcow2')


class TestCase(test.NoDBTestCase):

    CONF = conf.CONF

    def setUp(self):
        super().setUp()
        self.journal = self.useFixture(fixtures.TempDir()).path
        self.flags(journal_directory=self.journal, group='snapext')

    def instance(self, **image_properties):
        return fake_instance.fake_instance_obj(
            None, system_metadata={
                f'image_{name}': value
                for name, value in image_properties.items()},
            expected_attrs=['system_metadata'], root_device_name='/dev/vda')

    def plan(self, disk=QCOW2, running=True, image_format='qcow2',
             domain_xml='<domain/>', **image_properties):
        guest = mock.create_autospec(libvirt_guest.Guest, instance=True)
        guest._domain = mock.MagicMock()
        guest._domain.jobStats.return_value = {'type': 0}
        guest.get_xml_desc.return_value = domain_xml
        return planning.Plan(
            context=None, instance=self.instance(**image_properties),
            guest=guest, running=running, disk=disk, image_id=IMAGE_ID,
            image_format=image_format, image_properties={},
            metadata={'name': 'snap'})
