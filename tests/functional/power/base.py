# SPDX-License-Identifier: Apache-2.0
"""Snapshots during which the host loses power, and what is left then.

Journal, instances and libvirt's directories are on file systems of their own.
When the power goes, these lose what was not made durable, and all processes
are killed. Then they are mounted again, libvirtd is started, and recovery runs
as when nova-compute starts and the guest is started.
"""

import contextlib
import dataclasses
import hashlib
import multiprocessing
from multiprocessing import forkserver
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import uuid

from devcloud import libvirtd as devcloud_libvirtd
from devcloud import process
import libvirt
from lxml import etree
from oslo_serialization import jsonutils
from oslotest import base as oslotest_base
from testtools import content

from nova_snapext import plan as planning
from tests.functional import base
from tests.functional.power import filesystems
from tests.functional.power import victim

BEFORE, LAST = victim.BEFORE, victim.LAST

# Set by tox -e power. Otherwise only those tests run in which the most can be
# lost.
IN_FULL = bool(os.environ.get('SNAPEXT_POWER_IN_FULL'))
ONLY_IN_FULL = 'only in full: tox -e power'

# Seconds for what a process does.
PROCESS_TIMEOUT = 60

JOURNAL, INSTANCES, LIBVIRT = 'journal', 'instances', 'libvirt'

OVERLAY = 'disk.snapext'
# While it exists, the overlay certainly has not been left by a pivot.
MARKER = 'disk.snapext.unmerged'

# libvirt does not use this monitor: it works while libvirtd is dead.
DOMAIN = """
<domain type='{virt_type}'
        xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='{format}'/>
      <source file='{path}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:{monitor},server=on,wait=off'/>
  </qemu:commandline>
</domain>
"""


class PowerTestCase(oslotest_base.BaseTestCase):
    """Tests that share a libvirtd and file systems.

    :cvar KIND: of the file systems
    :cvar APART: whether journal, instances and libvirt's directories are on
        three file systems, instead of on one
    """

    KIND = 'ext4'
    APART = False

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.directory = pathlib.Path(tempfile.mkdtemp(prefix='snapext-'))
        cls.addClassCleanup(shutil.rmtree, cls.directory)
        os.chmod(cls.directory, 0o755)
        cls.filesystems = tuple(
            filesystems.Filesystem(cls.KIND, cls.directory, name)
            for name in ((JOURNAL, INSTANCES, LIBVIRT) if cls.APART
                         else ('all',)))
        for filesystem in cls.filesystems:
            cls.addClassCleanup(filesystem.unmount)
            filesystem.create()
        cls.paths = {}
        for name in (JOURNAL, INSTANCES, LIBVIRT):
            parent = cls.directory / (name if cls.APART else 'all')
            cls.paths[name] = parent / name
            cls.paths[name].mkdir()
        cls.monitors = cls.directory / 'monitors'
        cls.monitors.mkdir()
        cls.monitors.chmod(0o777)
        state = cls.directory / 'state'
        state.mkdir()
        # Definitions, saved memory. On a host, /run does not survive.
        for name in ('etc', 'lib'):
            (cls.paths[LIBVIRT] / name).mkdir()
            (state / name).symlink_to(cls.paths[LIBVIRT] / name)
        cls.libvirtd = devcloud_libvirtd.Libvirtd(state)
        cls.addClassCleanup(cls.kill_everything)
        cls.libvirtd.start()
        cls.settings = victim.Settings(
            filesystems=cls.filesystems, libvirtd=cls.libvirtd,
            log=cls.directory / 'log', boot_id=str(uuid.uuid4()), options=(
                ('libvirt', 'connection_uri', cls.libvirtd.uri),
                ('libvirt', 'virt_type',
                 'kvm' if cls.libvirtd.has_kvm else 'qemu'),
                ('snapext', 'journal_directory', str(cls.paths[JOURNAL])),
                ('snapext', 'work_directory',
                 str(cls.paths[INSTANCES] / 'w')),
                (None, 'instances_path', str(cls.paths[INSTANCES])),
                ('snapext', 'libvirt_config_directory',
                 str(cls.paths[LIBVIRT] / 'etc' / 'qemu')),
                ('snapext', 'libvirt_save_directory',
                 str(cls.paths[LIBVIRT] / 'lib' / 'qemu' / 'save')),
                # The file systems are small.
                (None, 'reserved_host_disk_mb', 0),
                ('snapext', 'min_free_disk_mb', 0),
            ))
        # They must not have our threads.
        cls.processes = multiprocessing.get_context('forkserver')
        cls.processes.set_forkserver_preload([victim.__name__])
        # Not in a test: its directory of temporary files is the class's.
        forkserver.ensure_running()

    def setUp(self):
        super().setUp()
        self.settings.log.write_text('')
        self.addOnException(lambda _error: self.addDetail(
            'log', content.content_from_file(
                str(self.settings.log), buffer_now=True)))
        self.acknowledged = BEFORE
        self.current = None
        self.addCleanup(lambda: self.current and self.remove(self.current))

    # The guest.

    def guest(self, disk_format='qcow2', running=True):
        """Define a guest with a full disk, and start it.

        It is the only one: what is left of an earlier one is removed.
        """
        if self.current:
            self.remove(self.current)
        number = str(uuid.uuid4())
        directory = self.paths[INSTANCES] / number
        directory.mkdir()
        disk = planning.RootDisk('vda', 'file', str(directory / 'disk'),
                                 disk_format)
        base.run('qemu-img', 'create', '-q', '-f', disk.format, disk.path,
                 str(base.DISK_SIZE))
        base.run('qemu-io', '-f', disk.format, '-c',
                 f'write -q -P {BEFORE} 0 {base.DISK_SIZE}', disk.path)
        (directory / 'disk.info').write_text(
            jsonutils.dumps({disk.path: disk.format}))
        guest = victim.Guest(number, f'guest-{number}', disk,
                             self.monitors / number[:8])
        with self.domain_of(guest, DOMAIN.format(
                virt_type='kvm' if self.libvirtd.has_kvm else 'qemu',
                name=guest.name, uuid=guest.uuid, format=disk.format,
                path=disk.path, monitor=guest.monitor)) as domain:
            if running:
                domain.create()
            self.definition = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        self.current = guest
        self.acknowledged = BEFORE
        for filesystem in self.filesystems:
            filesystem.sync()
        self.before = self.files(guest)
        return guest

    @classmethod
    @contextlib.contextmanager
    def domain_of(cls, guest, definition=None):
        """Connect to libvirtd, and return a guest's domain."""
        connection = libvirt.open(cls.libvirtd.uri)
        try:
            yield (connection.defineXML(definition) if definition else
                   connection.lookupByUUIDString(guest.uuid))
        finally:
            connection.close()

    def remove(self, guest):
        with contextlib.suppress(libvirt.libvirtError), \
                self.domain_of(guest) as domain:
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
        for left in (self.paths[INSTANCES] / guest.uuid,
                     self.paths[INSTANCES] / 'w'):
            shutil.rmtree(left, ignore_errors=True)
        for left in (*self.paths[JOURNAL].iterdir(),
                     self.paths[JOURNAL].parent / 'full'):
            left.unlink(missing_ok=True)

    def write(self, guest, pattern):
        """Write as the guest; it is acknowledged."""
        self.assertTrue(guest.write(pattern))
        self.acknowledged = pattern

    # The power.

    def snapshot_until_power_goes(self, guest, loss, kind=victim.Victim):
        """Take a snapshot in another process, until the power goes."""
        process, answers = self.run_process(
            victim.snapshot, kind, self.settings, guest, loss)
        if answers:
            self.acknowledged = answers[-1]
        self.assertEqual(-signal.SIGKILL, process.exitcode)

    def run_process(self, target, *args):
        """Run a function in another process.

        :returns: the process, which has ended, and all that it has sent
        """
        ours, theirs = self.processes.Pipe(duplex=False)
        started = self.processes.Process(target=target, args=(*args, theirs))
        started.start()
        self.addCleanup(started.kill)
        theirs.close()
        answers = []
        with contextlib.suppress(EOFError):
            while ours.poll(PROCESS_TIMEOUT):
                answers.append(ours.recv())
                if isinstance(answers[-1], str):
                    self.fail(answers[-1])
        started.join(PROCESS_TIMEOUT)
        return started, answers

    def lose_power(self, synced=()):
        """Switch the power off, from here."""
        for filesystem in self.filesystems:
            if filesystem.name in synced:
                filesystem.sync()
        for filesystem in self.filesystems:
            filesystem.lose_power()

    def restore_power(self):
        """Have all processes and unwritten data be gone, then boot."""
        self.kill_everything()
        for filesystem in self.filesystems:
            filesystem.restore_power()
        type(self).settings = dataclasses.replace(
            self.settings, boot_id=str(uuid.uuid4()))
        self.libvirtd.start()

    @classmethod
    def kill_everything(cls):
        """Kill libvirtd, its guests and qemu-nbd; /run is empty then."""
        killed = [identity for identity in (
            *(daemon.identity() for daemon in cls.libvirtd.daemons),
            *cls.libvirtd.guests().values(), *cls.exports()) if identity]
        for identity in killed:
            identity.signal(signal.SIGKILL)
        process.end(killed)
        shutil.rmtree(cls.directory / 'state' / 'run', ignore_errors=True)

    @classmethod
    def exports(cls):
        found = subprocess.run(('pgrep', '-f', f'qemu-nbd.*{cls.directory}'),
                               capture_output=True, text=True).stdout
        return [process.Identity.of(int(pid)) for pid in found.split()]

    def recover(self, guest):
        """Recover as when nova-compute starts and when the guest starts.

        :returns: the refusal, or None
        """
        _process, answers = self.run_process(
            victim.recover_all, self.settings, guest)
        [refusal] = answers
        return refusal

    # What must be true then.

    def assert_nothing_lost(self, guest, journaled=True):
        """Check that the guest has all that its disk acknowledged.

        Either the guest is recovered, or recovery has refused it and touched
        nothing, which is right only if it is unknown which data is newer.

        :param journaled: whether the journal has all that is left
        :returns: the refusal, or None
        """
        overlay = self.overlay(guest)
        disk = pathlib.Path(guest.disk.path)
        found = self.holds(overlay, 'qcow2'), self.holds(
            disk, guest.disk.format)
        digests = digest(overlay), digest(disk)
        unknown = (overlay.exists() and overlay.stat().st_size and
                   not self.marker(guest).exists() and
                   found[0] != found[1])
        refusal = self.recover(guest)
        if refusal is not None:
            self.assertEqual(digests, (digest(overlay), digest(disk)),
                             refusal)
            self.assertIn({self.acknowledged}, found, refusal)
            self.assertTrue(unknown and refusal.blocks_start, refusal)
            self.assert_safe_to_follow(refusal.text)
            return refusal
        self.assert_recovered(guest)
        if journaled:
            self.assert_nothing_left()
        return None

    def assert_recovered(self, guest):
        """Check what the guest starts from, and that nothing else is left."""
        with self.domain_of(guest) as domain:
            definition = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            if domain.isActive():
                # Its memory is of the time of the freeze, and so must be its
                # disk.
                self.assertEqual(BEFORE, self.acknowledged)
                domain.destroy()
            self.assertFalse(domain.hasManagedSaveImage())
        source = etree.fromstring(definition).find('./devices/disk/source')
        self.assertEqual(guest.disk.path, source.get('file'))
        self.assertEqual({self.acknowledged}, self.holds(
            guest.disk.path, guest.disk.format))
        self.assertEqual(self.definition, definition)
        self.assertEqual(self.before, self.files(guest))
        if guest.disk.format == 'qcow2':
            self.assertEqual('', base.run(
                'qemu-img', 'snapshot', '-l', guest.disk.path))
            # Leaks are no corruption: qemu-img(1).
            checked = subprocess.run(
                ('qemu-img', 'check', '-q', guest.disk.path))
            self.assertIn(checked.returncode, (0, 3))

    def assert_nothing_left(self):
        self.assertEqual([], [
            path.name for path in self.paths[JOURNAL].iterdir()])
        self.assertEqual([], list(
            (self.paths[INSTANCES] / 'w').glob('*')))

    def assert_safe_to_follow(self, remedy, running=False):
        """Check that a remedy loses nothing, whichever file is newer."""
        self.assertNotIn('was not started from', remedy)
        if running:
            self.assertNotIn('qemu-img commit', remedy)
            return
        self.assertRegex(remedy, 'cop(y|ies)')
        destroys = min((remedy.find(word) for word in (
            'qemu-img commit', 'remove ') if word in remedy), default=None)
        if destroys is not None:
            self.assertLess(remedy.find('cop'), destroys, remedy)

    def overlay(self, guest):
        return self.paths[INSTANCES] / guest.uuid / OVERLAY

    def marker(self, guest):
        return self.paths[INSTANCES] / guest.uuid / MARKER

    def files(self, guest):
        """Return the files of the instance; small ones with their text."""
        return {path.name: path.read_text() if path.suffix == '.info' else ''
                for path in (self.paths[INSTANCES] / guest.uuid).iterdir()}

    def holds(self, path, image_format):
        """Return all bytes that a chain of images has; None: no image."""
        if not os.path.exists(path) or not os.path.getsize(path):
            return None
        raw = self.directory / 'content'
        converted = subprocess.run(
            ('qemu-img', 'convert', '-U', '-f', image_format, '-O', 'raw',
             str(path), str(raw)), capture_output=True, text=True)
        self.assertEqual('', converted.stderr)
        return set(raw.read_bytes())


def digest(path):
    return (hashlib.sha256(path.read_bytes()).hexdigest()
            if path.exists() else None)
