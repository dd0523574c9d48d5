# SPDX-License-Identifier: Apache-2.0
"""The button, the list of images and the action log of Horizon."""

from devcloud import servers
from devcloud import wait

from tests.e2e import base
from tests.e2e import held
from tests.horizon import dashboard


class HorizonTest(held.HeldUploadTestCase):
    """Each test finds the guest running, and leaves it running."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot(name='my-server')
        cls.dashboard = dashboard.Dashboard(cls.state, cls.addClassCleanup)

    def named_image(self, name):
        """Return the id of the image with a name, or None."""
        found = self.client.get('glance', f'/images?name={name}')['images']
        return found[0]['id'] if found else None

    def request(self, name, picture=None):
        """Press the button, and return the id of the image."""
        self.dashboard.request_snapshot(self.server, name, picture)
        image = wait.until(f'image {name}', lambda: self.named_image(name),
                           held.SOON)
        self.addCleanup(self.client.delete, 'glance', f'/images/{image}',
                        missing_ok=True)
        return image

    def await_no_task(self):
        wait.until(f'the end of the snapshot of server {self.server}',
                   lambda: not servers.show(self.client, self.server)[
                       'OS-EXT-STS:task_state'], base.SNAPSHOT_TIMEOUT)

    def test_button_makes_an_image_from_which_horizon_starts_a_server(self):
        acknowledged = self.last_record(self.server)
        image = self.request('before-upgrade', 'horizon-create')
        self.await_no_task()
        self.dashboard.await_row('project/images', 'before-upgrade',
                                 lambda row: 'Active' in row, 'Active')
        self.dashboard.picture('horizon-images')
        report = self.assert_image_complete(image, acknowledged=acknowledged)
        self.dashboard.launch('before-upgrade', 'restored', 'snap.tiny')
        server = wait.until('server restored', self.restored, held.SOON)
        self.addCleanup(servers.delete, self.client, server)
        servers.await_status(self.client, server, 'ACTIVE',
                             servers.BUILD_TIMEOUT)
        self.assert_boots_with_records(server, report.records.last)
        self.assert_keeps_writing(self.server)

    def restored(self):
        found = self.client.get('nova-api', '/servers?name=restored')
        return found['servers'][0]['id'] if found['servers'] else None

    def test_deleting_the_image_cancels_the_snapshot(self):
        faults = self.set_faults(hold_after=[held.HELD_AFTER])
        image = self.request('not-needed')
        wait.until(f'the upload of image {image}', faults.held.is_set,
                   base.SNAPSHOT_TIMEOUT)
        self.dashboard.await_row('project/images', 'not-needed',
                                 lambda row: 'Saving' in row, 'Saving')
        self.dashboard.delete_image('not-needed')
        self.await_image_gone(image)
        self.await_no_task()
        self.dashboard.await_row('project/images', 'not-needed',
                                 lambda row: not row, 'nothing')
        self.assertIn('The image was deleted',
                      self.refusal_text(self.server))
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def test_failed_snapshot_leaves_no_image_and_an_error_in_the_log(self):
        self.configure('glance:DEFAULT.image_size_cap=1048576')
        image = self.request('too-large')
        self.await_no_task()
        self.assertFalse(self.image_exists(image))
        self.dashboard.await_row('project/images', 'too-large',
                                 lambda row: not row, 'nothing')
        request = self.client.get(
            'nova-api', f'/servers/{self.server}/os-instance-actions')[
                'instanceActions'][0]['request_id']
        self.dashboard.await_row(
            f'project/instances/{self.server}/'
            f'?tab=instance_details__audit', request,
            lambda row: 'Create Image' in row and 'Error' in row,
            'Create Image and Error')
        self.dashboard.picture('horizon-action-log')
        self.assert_nothing_left(self.server)
