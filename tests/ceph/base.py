# SPDX-License-Identifier: Apache-2.0
"""Guests whose disks are in Ceph, and what snapshots leave there."""

import contextlib
import dataclasses
import functools
import json
import re
import signal

from devcloud import api
from devcloud import ceph
from devcloud import errors
from devcloud import servers
from devcloud import services
from devcloud import shell
from devcloud import wait
from oslo_utils import units

from tests.e2e import base
from tests.e2e import matrix

#: The guests' images: a raw one in Ceph, which Nova clones, and one that Nova
#: copies from elsewhere.
IN_CEPH, ELSEWHERE = 'snap-guest-ceph', 'snap-guest'
IN_CEPH_WITHOUT_AGENT = 'snap-guest-ceph-noagent'
ELSEWHERE_WITHOUT_AGENT = 'snap-guest-noagent'

#: All strategies may be requested.
ALLOW_ALL = f'{matrix.ALLOW_ALL},rbd,auto'

#: Each step of a snapshot is in the log.
RBD = ('libvirt.images_type=rbd', ALLOW_ALL, 'DEFAULT.debug=True')
RAW = ('libvirt.snapshot_image_format=raw',)
QCOW2 = ('libvirt.snapshot_image_format=qcow2',)

#: Disks are files, and raw images of them are written into Glance's pool.
COPIED = ('libvirt.images_type=qcow2', ALLOW_ALL, 'DEFAULT.debug=True', *RAW,
          'snapext.rbd_image_user=nova', 'snapext.rbd_image_pool=images',
          'snapext.rbd_image_store=ceph')

#: Log lines of the two ways.
DIRECT = re.compile(r'Image (\S+) was made inside Ceph, as images/(\S+)')
STREAMED = re.compile(r'The root disk is streamed: (.*)')

# A socket and a file with a process's number are on the host, in bytes.
HOST_SPACE = 64 * units.Ki

# Seconds that a clean-up takes: Glance removes an image's data after it has
# answered.
SETTLE_TIMEOUT = 60

# Seconds that a request to the OSD waits in slow_ceph(): few enough for the
# guest, and enough for a copy that takes half a minute.
SLOW_SECONDS = 0.02

PATCH = {'Content-Type': 'application/openstack-images-v2.1-json-patch'}

# Runs in the guest. guest-exec returns before the agent ends.
END_AGENT = '(sleep 1; kill $(pidof qemu-ga)) &'


@dataclasses.dataclass(frozen=True)
class Taken:
    """A snapshot and what its image has to say.

    :ivar snapshot: as its user and an operator see it
    :ivar image: as Glance shows it
    :ivar report: what the guest has written to it
    """

    snapshot: base.Snapshot
    image: dict
    report: object


def configured(*settings):
    """Give a test further settings.

    nova-compute is restarted once for tests with the same settings that follow
    each other.
    """
    def decorate(test):
        test.settings = settings
        return test
    return decorate


class CephTestCase(base.CloudTestCase):
    """Tests with disks in Ceph.

    :cvar HOST_SPACE: bytes that a snapshot may need on the host
    :cvar MORE: further settings of the class
    """

    CONFIGURATION = RBD
    HOST_SPACE = HOST_SPACE
    MORE: tuple[str, ...] = ()

    @classmethod
    def setUpClass(cls):
        cls.CONFIGURATION = (*cls.CONFIGURATION, *cls.MORE)
        super().setUpClass()
        if not cls.state.has_ceph:
            raise errors.CloudError(
                'this cloud has no Ceph; run `tools/cloud up --ceph`')
        cls.ceph = ceph.cluster(cls.state)
        cls.admin = api.Client.admin(cls.state)

    def setUp(self):
        test = getattr(self, self._testMethodName)
        # For setUp() of the parent, which configures what the test needs.
        self.configure = functools.partial(
            type(self).configure, *getattr(test, 'settings', ()))
        super().setUp()

    @classmethod
    def boot(cls, image=IN_CEPH, *args, **kwargs):
        return super().boot(image, *args, **kwargs)

    def server_shown(self, server=None):
        return servers.show(self.client, server or self.server)

    # What is in Ceph.

    @classmethod
    def rbd_json(cls, *words):
        return json.loads(cls.ceph.rbd(*words, '--format', 'json'))

    @classmethod
    def volumes(cls, pool):
        """Return the names of the images of a pool."""
        return set(cls.rbd_json('ls', pool))

    @classmethod
    def disk_snapshots(cls, server):
        """Return the names of the snapshots of a server's root disk."""
        return [found['name'] for found in cls.rbd_json(
            'snap', 'ls', f'vms/{server}_disk')]

    @classmethod
    def parent(cls, volume):
        """Return pool and name of the image that an image is a clone of."""
        found = cls.rbd_json('info', volume).get('parent')
        return found and f'{found["pool"]}/{found["image"]}'

    @classmethod
    def foreign_volumes(cls):
        """Return the names in Glance's pool that are no image of Glance's."""
        known = {image['id'] for image in cls.admin.get(
            'glance', '/images?limit=1000')['images']}
        return cls.volumes('images') - known

    @classmethod
    def remove_by_force(cls, server):
        """Remove what is left of a server, and of images without one."""
        for volume in (*(f'images/{name}' for name in cls.foreign_volumes()),
                       *(f'vms/{name}' for name in cls.volumes('vms')
                         if name.startswith(server))):
            for snapshot in cls.rbd_json('snap', 'ls', volume):
                if snapshot['protected'] == 'true':
                    cls.ceph.rbd('snap', 'unprotect',
                                 f'{volume}@{snapshot["name"]}')
            cls.ceph.rbd('snap', 'purge', '--no-progress', volume)
            cls.ceph.rbd('rm', '--no-progress', volume)

    def assert_nothing_left(self, server):
        """Check that nothing of a snapshot is left, in Ceph neither."""
        super().assert_nothing_left(server)
        self.assert_nothing_left_in_ceph(server)

    def assert_nothing_left_in_ceph(self, server):
        self.assertEqual([], self.disk_snapshots(server))
        wait.until("Glance's pool to have no image that Glance has not",
                   lambda: not self.foreign_volumes(), SETTLE_TIMEOUT)
        self.assert_no_trash()
        self.assertEqual([], self.journal_files())

    def assert_no_trash(self):
        for pool in ceph.POOLS:
            self.assertEqual([], self.rbd_json('trash', 'ls', pool))

    def journal_files(self):
        # Not the directory of `nova-snapext check --trial`.
        return [path.name for path in (self.state.nova / 'snapext').glob('*')
                if path.is_file() and path.name != 'lock']

    def assert_deleted(self, server):
        """Delete a server, and check that its disk is gone from Ceph."""
        servers.delete(self.client, server)
        self.assert_disk_gone(server)

    def assert_disk_gone(self, server):
        self.assertEqual([], [name for name in self.volumes('vms')
                              if name.startswith(server)])
        wait.until("Glance's pool to have no image that Glance has not",
                   lambda: not self.foreign_volumes(), SETTLE_TIMEOUT)
        self.assert_no_trash()

    # Snapshots, and the way that each has taken.

    def assert_taken(self, snapshot, consistency, image_format='raw',
                     strategy='rbd'):
        """Check a snapshot's image, properties, content and remains.

        The file system of a quiesced guest has to be clean.

        :param consistency: the expected one
        """
        self.assertEqual((strategy, consistency),
                         (snapshot.strategy, snapshot.consistency),
                         snapshot.log[-4000:])
        image = self.image(snapshot.image)
        self.assertEqual(strategy, image['snapext_strategy_used'])
        self.assertEqual(consistency, image['snapext_consistency'])
        self.assertRegex(image['snapext_frozen_at'],
                         r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$')
        self.assertNotIn('snapext_strategy', image)
        self.assertLess(snapshot.host_space, self.HOST_SPACE)
        report = self.assert_snapshot_complete(snapshot, image_format)
        if consistency in ('filesystem', 'offline'):
            self.assertTrue(report.filesystem.clean, report.filesystem.check)
            self.assertFalse(report.filesystem.needs_recovery)
        return Taken(snapshot, image, report)

    def assert_direct(self, snapshot, consistency):
        """Check a snapshot whose image was made inside Ceph."""
        taken = self.assert_taken(snapshot, consistency)
        self.assertEqual(('0', '0'), snapshot.figures[3:])
        self.assert_in_ceph(snapshot)
        return taken

    def assert_in_ceph(self, snapshot):
        """Check that a snapshot's image is in Glance's pool, and no clone."""
        made = DIRECT.search(snapshot.log)
        self.assertIsNotNone(made, snapshot.log[-4000:])
        self.assertEqual((snapshot.image,) * 2, made.groups())
        self.assertIn(snapshot.image, self.volumes('images'))
        # It needs neither the guest's disk nor the image of the guest.
        self.assertIsNone(self.parent(f'images/{snapshot.image}'))

    def assert_streamed(self, snapshot, consistency, image_format='raw',
                        strategy='rbd'):
        """Check a snapshot whose data was read and sent.

        :returns: the snapshot, and why it was not made inside Ceph
        """
        taken = self.assert_taken(
            snapshot, consistency, image_format, strategy)
        self.assertIsNone(DIRECT.search(snapshot.log))
        reason = STREAMED.search(snapshot.log)
        self.assertIsNotNone(reason, snapshot.log[-4000:])
        self.assertGreater(int(snapshot.figures[3]), 0)
        return taken, reason[1]

    def assert_reads_sparsely(self, snapshot, server):
        """Check that no more was read of a disk than what is allocated."""
        # Ceph rounds up to objects of 4 MiB.
        used = sum(found['used_size'] for found in self.rbd_json(
            'du', f'images/{self.image(snapshot.image)["base_image_ref"]}',
        )['images']) if self.parent(f'vms/{server}_disk') else 0
        used += sum(found['used_size'] for found in self.rbd_json(
            'du', f'vms/{server}_disk')['images'])
        self.assertLessEqual(int(snapshot.figures[3]), used)

    # The guest's agent.

    def agent_command(self, server, command, **arguments):
        return json.loads(self.host.virsh(
            'qemu-agent-command', '--timeout', '5', server, json.dumps(
                {'execute': command, 'arguments': arguments})))['return']

    def end_agent(self, server):
        """End the agent, until the next boot of the guest."""
        self.agent_command(server, 'guest-exec', path='/bin/sh',
                           arg=['-c', END_AGENT])
        wait.until('the end of the agent', lambda: (
            "state='disconnected'" in self.host.virsh('dumpxml', server)),
            SETTLE_TIMEOUT)

    def assert_not_frozen(self, server):
        self.assertEqual('thawed', self.agent_command(
            server, 'guest-fsfreeze-status'))

    # Images.

    def patch_image(self, image, **properties):
        self.client.open(
            'PATCH', 'glance', f'/images/{image}', json.dumps([
                {'op': 'add', 'path': f'/{name}', 'value': value}
                for name, value in properties.items()]).encode(),
            PATCH).close()

    def await_image_gone(self, image):
        wait.until(f'the deletion of image {image}',
                   lambda: not self.image_exists(image), SETTLE_TIMEOUT)

    # Requests that the test does not wait for.

    def request(self, server, **metadata):
        """Request a snapshot.

        :returns: id of its image, and a function that returns the log since
        """
        path = self.state.log('nova-compute')
        offset = path.stat().st_size

        def log():
            with open(path, errors='replace') as lines:
                lines.seek(offset)
                return lines.read()

        image = servers.action(self.client, server, 'createImage', {
            'name': 'ceph', 'metadata': metadata})['image_id']
        self.addCleanup(self.client.delete, 'glance', f'/images/{image}',
                        missing_ok=True)
        return image, log

    def await_log(self, log, text, timeout=base.SNAPSHOT_TIMEOUT):
        wait.until(f'{text!r} in the log of nova-compute',
                   lambda: text in log(), timeout)

    def await_end(self, server, timeout=base.SNAPSHOT_TIMEOUT):
        wait.until(f'the end of the task of server {server}', lambda: (
            not self.server_shown(server)['OS-EXT-STS:task_state']), timeout)

    def begin_flatten(self, server, **metadata):
        """Request a snapshot, and wait until its clone is being flattened.

        To be called inside slow_ceph().
        """
        image, log = self.request(server, **metadata)
        self.await_log(log, f'is cloned to images/{image}')
        self.assertNotIn(f'images/{image} is flattened', log())
        return image, log

    # Faults of Ceph.

    @contextlib.contextmanager
    def slow_ceph(self, seconds=SLOW_SECONDS):
        """Let every request to the OSD wait.

        A flatten takes long enough then for a test to act during it.
        """
        self.set_osd('osd_debug_inject_dispatch_delay_duration', seconds)
        self.set_osd('osd_debug_inject_dispatch_delay_probability', 1)
        self.addCleanup(self.set_osd,
                        'osd_debug_inject_dispatch_delay_probability', 0)
        try:
            yield
        finally:
            self.set_osd('osd_debug_inject_dispatch_delay_probability', 0)

    def set_osd(self, option, value):
        # The OSD keeps it until its next start.
        self.ceph.ceph('tell', 'osd.0', 'config', 'set', option, str(value))

    def stop_osd(self):
        """Stop the OSD. It is started again at the end of the test."""
        self.addCleanup(self.ceph.start_osd)
        self.ceph.stop_osd()

    def suspend_osd(self):
        """Have the OSD hang. It goes on at the end of the test."""
        self.addCleanup(self.resume_osd)
        self.ceph.suspend_osd()

    def resume_osd(self):
        """Let the OSD go on, and wait until it is in the cluster again."""
        self.ceph.resume_osd()
        self.ceph.start_osd()

    # Faults of nova-compute.

    def kill_compute(self):
        """Kill nova-compute, and wait for its end."""
        process = services.nova_compute(self.state).daemon(
            self.state).identity()
        process.signal(signal.SIGKILL)
        wait.until('the end of nova-compute', lambda: not process.is_alive(),
                   SETTLE_TIMEOUT)


class OneGuestTestCase(CephTestCase):
    """One guest, which is the same in all tests."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot()

    def assert_as_before(self):
        self.assert_nothing_left(self.server)
        self.assert_not_frozen(self.server)
        self.assert_keeps_writing(self.server)


class CopyTestCase(CephTestCase):
    """Tests with disks that are files, and images that are copied into Ceph.

    The disks are qcow2 files.
    """

    CONFIGURATION = COPIED
    # What the guest overwrites during the snapshot, and QEMU's own data.
    HOST_SPACE = 16 * units.Mi

    @classmethod
    def boot(cls, image=ELSEWHERE, *args, **kwargs):
        return super().boot(image, *args, **kwargs)

    @classmethod
    def disk_of(cls, server):
        return cls.state.instances / server / 'disk'

    @classmethod
    def disk_snapshots(cls, server):
        """Return the names of the snapshots in a server's root disk."""
        shown = json.loads(shell.run(
            ['qemu-img', 'info', '-U', '--output', 'json',
             cls.disk_of(server)]))
        return [found['name'] for found in shown.get('snapshots', ())]

    def assert_nothing_left(self, server):
        super().assert_nothing_left(server)
        # No overlay.
        self.assertIn(f' {self.disk_of(server)}\n', self.host.virsh(
            'domblklist', server))

    def assert_copied(self, snapshot, strategy, consistency):
        """Check a snapshot whose data was written into Ceph by the host.

        Zeros neither are in the copy nor were sent.
        """
        taken = self.assert_taken(snapshot, consistency, strategy=strategy)
        self.assert_in_ceph(snapshot)
        size = taken.image['size']
        read, sent = map(int, snapshot.figures[3:])
        self.assertGreater(sent, 0)
        self.assertLessEqual(sent, read)
        self.assertLess(sent, size // 2)
        [used] = {found['used_size'] for found in self.rbd_json(
            'du', f'images/{snapshot.image}')['images']
            if 'snapshot' in found}
        self.assertLess(used, size // 2)
        # The snapshot's end waits for it.
        self.assertIsNotNone(taken.image['os_hash_value'])
        return taken

    def begin_copy(self, server, **metadata):
        """Request a snapshot, and wait until its data is being written.

        To be called inside slow_ceph().
        """
        image, log = self.request(server, **metadata)
        # The first half is what is written, the second what is read back.
        wait.until('the progress of the snapshot', lambda: (
            self.server_shown(server)['progress']), base.SNAPSHOT_TIMEOUT)
        self.assertLess(self.server_shown(server)['progress'], 50)
        self.assertIn(image, self.volumes('images'))
        self.assertNotIn('is written and verified', log())
        return image, log
