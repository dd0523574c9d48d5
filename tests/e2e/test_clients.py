# SPDX-License-Identifier: Apache-2.0
"""Snapshots as users request them: their programs, libraries and versions.

Each client creates an image and waits for it, in its own way; deletes one
whose upload is in progress; and gets to know why a snapshot fails.
"""

import ast
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys

from devcloud import api
from devcloud import servers
from devcloud import state as cloud_state
from devcloud import wait
import openstack

from tests.e2e import base
from tests.e2e import held
from tests import in_full

#: The first one that shows users the names of events.
EVENTS = (2, 51)

#: What each user reads when its image is larger than the quota of Glance.
QUOTA_TEXT = 'a quota or a size limit is reached'

PROGRAMS = pathlib.Path(sys.executable).parent


class ClientTestCase(held.HeldUploadTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.shared_guest()


class ClientTests:
    """The tests of each client."""

    def create(self):
        """Request a snapshot, and wait until its image is active.

        :returns: the image's id
        """
        raise NotImplementedError

    def request(self):
        """Request a snapshot, and do not wait.

        :returns: the image's id, or None if the client does not tell it
        """
        raise NotImplementedError

    def delete_image(self, image):
        raise NotImplementedError

    def events(self):
        """Return the names and results of the events of the last action."""
        raise NotImplementedError

    def await_task_end(self):
        servers.await_status(self.client, self.server, 'ACTIVE',
                             base.SNAPSHOT_TIMEOUT)

    def last_image(self):
        """Return the id of the newest image of the user."""
        [image] = self.client.get(
            'glance', '/images?name=e2e-client&sort=created_at:desc&limit=1'
        )['images']
        return image['id']

    def test_image_is_created_and_active(self):
        acknowledged = self.last_record(self.server)
        image = self.create() or self.last_image()
        self.addCleanup(self.client.delete, 'glance', f'/images/{image}',
                        missing_ok=True)
        self.assert_image_complete(image, acknowledged=acknowledged)
        self.await_task_end()
        self.assert_nothing_left(self.server)

    def test_deletion_of_the_image_cancels_the_snapshot(self):
        faults = self.set_faults(hold_after=[held.HELD_AFTER])
        image = self.request() or self.last_image()
        wait.until('the upload', faults.held.is_set, base.SNAPSHOT_TIMEOUT)
        self.delete_image(image)
        self.await_task_end()
        self.assert_told('The image was deleted before it was complete')
        self.assert_nothing_left(self.server)

    def test_failure_is_seen_with_its_reason(self):
        self.set_faults(answers=[413])
        self.request()
        self.await_task_end()
        self.assert_told(QUOTA_TEXT)
        self.assert_nothing_left(self.server)

    def assert_told(self, text):
        """Check that the client shows a failed event with a text."""
        failed = [name for name, result in self.events() if result == 'Error']
        self.assertTrue(any(text in name for name in failed), failed)


class OpenStackClientTest(ClientTests, ClientTestCase):
    """python-openstackclient, which reads the environment."""

    def run_client(self, *words):
        return subprocess.run(
            [PROGRAMS / 'openstack', *words],
            env={**os.environ, **environment(self.state)}, check=True,
            stdout=subprocess.PIPE, text=True).stdout

    def shown(self, *words):
        return json.loads(self.run_client(*words, '-f', 'json'))

    def create(self):
        # Its progress is on standard output, too.
        self.run_client('server', 'image', 'create', '--wait', '--name',
                        'e2e-client', self.server)

    def request(self):
        return self.shown('server', 'image', 'create', '--name', 'e2e-client',
                          self.server)['id']

    def delete_image(self, image):
        self.run_client('image', 'delete', image)

    def events(self):
        listed = self.shown('server', 'event', 'list', self.server)
        last = max(listed, key=lambda action: action['Start Time'])
        shown = self.shown('server', 'event', 'show', self.server,
                           last['Request ID'])
        return [(event['event'], event['result'])
                for event in shown['events']]


class NovaClientTest(ClientTests, ClientTestCase):
    """python-novaclient, whose --poll watches the image."""

    def run_client(self, *words):
        return subprocess.run(
            [PROGRAMS / 'nova', *words],
            env={**os.environ, **environment(self.state)}, check=True,
            stdout=subprocess.PIPE, text=True).stdout

    def create(self):
        shown = self.run_client('image-create', '--poll', self.server,
                                'e2e-client')
        self.assertIn('Finished', shown)

    def request(self):
        self.run_client('image-create', self.server, 'e2e-client')

    def delete_image(self, image):
        # This client has no command for it any more.
        self.client.delete('glance', f'/images/{image}')

    def events(self):
        # A table, sorted by the time of the request: the last one is ours.
        rows = self.run_client('instance-action-list', self.server)
        *_others, request = (
            word for row in rows.splitlines()
            for word in row.split() if word.startswith('req-'))
        shown = self.run_client('instance-action', self.server, request)
        rows = [line.split('|')[1:3] for line in shown.splitlines()
                if line.count('|') == 3]
        [first] = [number for number, (name, _value) in enumerate(rows)
                   if name.strip() == 'events']
        # A Python literal, on several lines.
        values = [rows[first][1], *itertools.takewhile(bool, (
            '' if name.strip() else value
            for name, value in rows[first + 1:]))]
        return [(event['event'], event['result'])
                for event in ast.literal_eval('\n'.join(values).strip())]


@in_full.only
class SdkTest(ClientTests, ClientTestCase):
    """openstacksdk."""

    @functools.cached_property
    def cloud(self):
        return openstack.connect(**{
            name.removeprefix('OS_').lower(): value
            for name, value in environment(self.state).items()},
            load_yaml_config=False, load_envvars=False)

    def create(self):
        return self.cloud.create_image_snapshot(
            'e2e-client', self.server, wait=True,
            timeout=base.SNAPSHOT_TIMEOUT).id

    def request(self):
        return self.cloud.create_image_snapshot(
            'e2e-client', self.server).id

    def delete_image(self, image):
        self.cloud.delete_image(image)

    def events(self):
        compute = self.cloud.compute
        last = max(compute.server_actions(self.server),
                   key=lambda action: action.start_time)
        shown = compute.get_server_action(last.request_id, self.server)
        return [(event.event, event.result) for event in shown.events]


class OldestVersionTest(ClientTests, ClientTestCase):
    """Nova's API itself, in its first microversion.

    :cvar VERSION: the microversion
    """

    VERSION = '2.1'

    def call(self, method, path, body=None, version=None):
        with self.client.open(
                method, 'nova-api', path,
                None if body is None else json.dumps(body).encode(),
                {'Content-Type': 'application/json',
                 'OpenStack-API-Version':
                     f'compute {version or self.VERSION}'}) as response:
            return response.read(), response.headers

    def request(self):
        content, headers = self.call(
            'POST', f'/servers/{self.server}/action',
            {'createImage': {'name': 'e2e-client'}})
        # Since 2.45 in the body, before in the header.
        return (json.loads(content)['image_id'] if content else
                headers['Location'].rpartition('/')[2])

    def create(self):
        image = self.request()
        wait.until(f'image {image} active', lambda: (
            self.image(image)['status'] == 'active'), base.SNAPSHOT_TIMEOUT)
        return image

    def delete_image(self, image):
        self.client.delete('glance', f'/images/{image}')

    def events(self):
        # Users of an older one see no events, and the action has failed.
        version = tuple(int(part) for part in self.VERSION.split('.'))
        if version < EVENTS:
            last = self.last_action(self.VERSION)
            self.assertNotIn('events', last)
            self.assertEqual('Error', last['message'])
        shown = self.last_action(max(self.VERSION, '2.51', key=lambda text: [
            int(part) for part in text.split('.')]))
        for event in shown['events']:
            # They are for operators.
            self.assertIsNone(event.get('details'))
            self.assertIsNone(event.get('traceback'))
        return [(event['event'], event['result'])
                for event in shown['events']]

    def last_action(self, version):
        path = f'/servers/{self.server}/os-instance-actions'
        content, _headers = self.call('GET', path)
        last = max(json.loads(content)['instanceActions'],
                   key=lambda action: action['start_time'])
        content, _headers = self.call(
            'GET', f'{path}/{last["request_id"]}', version=version)
        return json.loads(content)['instanceAction']


@in_full.only
class ImageInHeaderTest(OldestVersionTest):
    """The last one that returns the image in a header."""

    VERSION = '2.44'


@in_full.only
class EventsTest(OldestVersionTest):
    """The first one that shows users the events."""

    VERSION = '2.51'


class NewestVersionTest(OldestVersionTest):

    VERSION = api.COMPUTE_VERSION


def environment(state):
    """Return the variables that the clients of a plain user read."""
    user = api.Client.demo(state)
    return {
        'OS_AUTH_URL': cloud_state.url('keystone', '/v3'),
        'OS_USERNAME': user.user, 'OS_PASSWORD': user.password,
        'OS_PROJECT_NAME': user.project, 'OS_USER_DOMAIN_NAME': 'Default',
        'OS_PROJECT_DOMAIN_NAME': 'Default',
        'OS_COMPUTE_API_VERSION': api.COMPUTE_VERSION,
        'OS_IDENTITY_API_VERSION': '3', 'OS_IMAGE_API_VERSION': '2',
    }
