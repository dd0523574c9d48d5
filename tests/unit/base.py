# SPDX-License-Identifier: Apache-2.0
"""Base class of the unit tests, and a plan to start from."""

from unittest import mock

import fixtures
import libvirt
from nova import test
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.tests.unit import fake_instance

from nova_snapext import conf
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import privsep
from nova_snapext import plan as planning
from nova_snapext.upload import service_login

#: Of a guest whose QEMU runs as root.
DOMAIN = """
<domain><seclabel model='dac'><label>+0:+0</label></seclabel></domain>
"""

IMAGE_ID = 'c2c5d0ab-8a1c-4ac7-8b27-0ee2bd0e6d3b'

QCOW2 = planning.RootDisk(target='vda', storage='file', path='/i/disk',
                          format='qcow2')


class _LibvirtError(libvirt.libvirtError, fakelibvirt.libvirtError):
    """libvirt's error, also where Nova's fixture stands in for libvirt."""


def libvirt_error(code, message='libvirt refuses', domain=0):
    """Return an error as libvirt raises it.

    :param code: one of libvirt's VIR_ERR_*
    :param domain: one of libvirt's VIR_FROM_*: the part that raises it
    """
    return fakelibvirt.make_libvirtError(
        _LibvirtError, message, error_code=code, error_domain=domain,
        error_message=message)


def fake_guest(running=True):
    """Return a libvirt domain without jobs and without saved memory."""
    guest = mock.create_autospec(domain.Domain, instance=True)
    guest.is_active.return_value = running
    guest.state.return_value = (
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)
        if running else
        (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN))
    guest.job_stats.return_value = {'type': libvirt.VIR_DOMAIN_JOB_NONE}
    guest.block_job_info.return_value = {}
    guest.has_managed_save.return_value = False
    guest.memory_size.return_value = 0
    guest.has_persistent_configuration.return_value = True
    guest.get_block_device.return_value.get_job_info.return_value = None
    return guest


class TestCase(test.NoDBTestCase):

    CONF = conf.CONF

    def setUp(self):
        super().setUp()
        # Nova's base class does this for Nova's own context.
        for context in (privsep.context, privsep.label_context):
            self.useFixture(fixtures.MockPatchObject(
                context, 'client_mode', False))
        self.useFixture(fixtures.MockPatchObject(
            service_login, '_shared', service_login._Shared()))
        # No version of QEMU can be told of a fake guest.
        self.useFixture(fixtures.MockPatch(
            'nova_snapext.strategies.base.FreezingStrategy.'
            '_known_defect_reason', return_value=None))
        # The files of a fake guest do not exist.
        for name in ('strategies.base.FreezingStrategy._work_directory_reason',
                     'strategies.base.check_headers',
                     'resources.overlay.Overlay.check'):
            self.useFixture(fixtures.MockPatch(
                f'nova_snapext.{name}', return_value=None))
        self.journal = self.useFixture(fixtures.TempDir()).path
        self.flags(journal_directory=self.journal, group='snapext')

    def instance(self, **image_properties):
        return fake_instance.fake_instance_obj(
            None, system_metadata={
                f'image_{name}': value
                for name, value in image_properties.items()},
            expected_attrs=['system_metadata'], root_device_name='/dev/vda')

    def plan(self, disk=QCOW2, running=True, image_format='qcow2',
             domain_xml=DOMAIN, **image_properties):
        guest = fake_guest(running)
        guest.get_xml_desc.return_value = domain_xml
        return planning.Plan(
            context=None, instance=self.instance(**image_properties),
            guest=guest, running=running, disk=disk, image_id=IMAGE_ID,
            image_format=image_format, image_properties={},
            metadata={'name': 'snap'})
