# SPDX-License-Identifier: Apache-2.0

import contextlib
import dataclasses
import io
import json
import os
import pathlib
from unittest import mock

import fixtures
import jsonschema
from oslo_utils.fixture import uuidsentinel as uuids
from oslo_utils import units

from nova_snapext.cmd.check import trial
from nova_snapext.cmd import exits
from nova_snapext.cmd import main
from nova_snapext.cmd import prometheus
from nova_snapext.cmd import standalone
from nova_snapext.cmd import status
from nova_snapext import journal
from nova_snapext.resources import overlay
from nova_snapext.snapshot import published
from tests.unit import base
from tests.unit.journal import base as journal_base


SCHEMA = (pathlib.Path(__file__).parents[3] /
          'doc/source/cli/status-schema.json')


class _Entered(fixtures.Fixture):
    """A context manager as a fixture."""

    def __init__(self, manager):
        self._manager = manager

    def _setUp(self):
        self.entered = self._manager.__enter__()
        self.addCleanup(self._manager.__exit__, None, None, None)


class StatusTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.patch(standalone, 'read_configuration')
        self.runs = self.patch(journal, 'is_locked_by_another')
        self.runs.return_value = False
        self.plan_ = self.plan()
        self.work = self.useFixture(fixtures.TempDir()).path
        self.flags(work_directory=self.work, group='snapext')
        self.uuid = self.plan_.instance.uuid

    def patch(self, target, name):
        patch = mock.patch.object(target, name)
        self.addCleanup(patch.stop)
        return patch.start()

    def start_nova_compute(self):
        with journal.locked():
            pass
        self.runs.return_value = True

    def leave(self):
        with journal.new_entry(self.plan_, 'external') as entry:
            entry.add(journal_base.Thing())
        return entry

    def text(self):
        """Return the exit code and the text."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), \
                contextlib.redirect_stderr(printed):
            code = main.main(['status'])
        return code, printed.getvalue()

    def status(self, outstanding):
        """Return the JSON, and check that the text agrees."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = main.main(['status', '--format', 'json'])
        status = json.loads(printed.getvalue())
        jsonschema.validate(status, json.loads(SCHEMA.read_text()))
        self.assertEqual(code, self.text()[0])
        self.assertEqual((code, outstanding),
                         (int(outstanding), status['outstanding']))
        return status

    def test_clean_host_has_nothing_outstanding(self):
        self.flags(journal_directory=f'{self.journal}/none', group='snapext')
        status = self.status(outstanding=False)
        self.assertEqual(
            (self.CONF.host, False, [], [], [], []),
            tuple(status[name] for name in (
                'host', 'locked', 'snapshots', 'images', 'unusable',
                'set_aside')))
        self.assertIn('nothing is outstanding', self.text()[1])
        self.assertEqual([], os.listdir(self.journal))

    def test_running_snapshot_is_not_outstanding(self):
        self.start_nova_compute()
        with journal.new_image(self.plan_, 'external', True) as image, \
                mock.patch.object(journal, 'images', return_value=[image]), \
                journal.new_entry(self.plan_, 'external') as entry:
            entry.add(journal_base.Thing())
            status = self.status(outstanding=False)
            text = self.text()[1]
            entry.remove(entry.records[0])
        [snapshot] = status['snapshots']
        self.assertEqual(
            ('running', self.uuid, base.IMAGE_ID, 'external', ['thing']),
            tuple(snapshot[name] for name in (
                'state', 'instance_uuid', 'image_id', 'strategy',
                'resources')))
        self.assertEqual([], status['images'])
        for part in (self.uuid, 'external'):
            self.assertIn(part, text)

    def test_snapshot_of_an_earlier_process_is_recovered(self):
        with mock.patch.object(journal.JournalEntry, 'close'), \
                journal.new_entry(self.plan_, 'external'):
            pass
        self.start_nova_compute()
        [snapshot] = self.status(outstanding=True)['snapshots']
        self.assertEqual('recovering', snapshot['state'])
        self.assertIn('cleaned up now', self.text()[1])

    def test_snapshot_that_could_not_be_cleaned_up_waits_with_the_reason(
            self):
        self.start_nova_compute()
        self.leave().save_problem('libvirtd hangs')
        [snapshot] = self.status(outstanding=True)['snapshots']
        self.assertEqual(
            ('waiting', 'libvirtd hangs', False, True),
            tuple(snapshot[name] for name in (
                'state', 'problem', 'blocks_start', 'blocks_snapshot')))
        self.assertIn('libvirtd hangs', self.text()[1])
        self.assertIn('refused: snapshot', self.text()[1])

    def test_snapshot_waits_while_nova_compute_is_stopped(self):
        with mock.patch.object(journal.JournalEntry, 'close'), \
                journal.new_entry(self.plan_, 'external'):
            pass
        [snapshot] = self.status(outstanding=True)['snapshots']
        self.assertEqual('waiting', snapshot['state'])
        self.assertIn('when nova-compute starts', self.text()[1])

    def test_guest_that_is_paused_by_its_merge_is_told(self):
        class PausedGuest(journal_base.Thing):
            kind = overlay.Overlay.kind

            def record(self):
                return {'write_limit': {'paused': True}}

        with journal.new_entry(self.plan_, 'external') as entry:
            entry.add(journal_base.Thing())
            self.assertFalse(self.is_guest_paused())
            entry.add(PausedGuest())
            self.assertTrue(self.is_guest_paused())

    def is_guest_paused(self):
        [snapshot] = self.status(outstanding=True)['snapshots']
        self.assertIs(snapshot['guest_paused'],
                      'guest is paused' in self.text()[1])
        return snapshot['guest_paused']

    def test_schema_knows_every_phase(self):
        snapshot = json.loads(SCHEMA.read_text())[
            'properties']['snapshots']['items']['properties']
        phases = snapshot['phase']['enum']
        self.assertEqual({None, *published.Phase}, {*phases})

    def test_what_is_set_apart_blocks_nothing(self):
        self.start_nova_compute()
        self.leave().set_apart()
        [snapshot] = self.status(outstanding=True)['snapshots']
        self.assertEqual(('waiting', False), (
            snapshot['state'], snapshot['blocks_snapshot']))
        self.assertIn('refused: nothing', self.text()[1])

    def test_image_waits_for_its_deletion(self):
        plan = dataclasses.replace(self.plan_, image_id=uuids.image)
        with journal.new_image(plan, 'external', True) as image:
            image.reason = 'it is protected'
            image.save()
        [image] = self.status(outstanding=True)['images']
        self.assertEqual(
            (uuids.image, self.uuid, 'it is protected'),
            (image['image_id'], image['instance_uuid'], image['reason']))
        for part in (uuids.image, 'it is protected'):
            self.assertIn(part, self.text()[1])

    def test_files_that_can_not_be_used_are_listed(self):
        for name, text in ((f'{uuids.newer}.json', '{"version": 2}'),
                           ('x\n\x1b.json', '['),
                           ('y.json.unreadable', '')):
            pathlib.Path(self.journal, name).write_text(text)
        before = {*os.listdir(self.journal)}
        status = self.status(outstanding=True)
        self.assertEqual(
            {uuids.newer, None},
            {file['instance_uuid'] for file in status['unusable']})
        self.assertEqual([f'{self.journal}/y.json.unreadable'],
                         status['set_aside'])
        text = self.text()[1]
        for part in ('version 2', f'blocks instance {uuids.newer}',
                     r'\x1b.json', 'set aside'):
            self.assertIn(part, text)
        self.assertNotIn('\x1b', text)
        self.assertEqual(before, {*os.listdir(self.journal)})

    def publish(self):
        """Have a snapshot tell what it does."""
        publication = self.useFixture(_Entered(
            published.Publication(self.plan_.instance, base.IMAGE_ID))).entered
        publication.set_phase(published.Phase.PREPARING, 'backup')
        publication.set_frozen('2026-01-01T00:00:00')
        publication.on_progress(512 * units.Mi, 2 * units.Gi)
        return publication

    def scratch(self):
        """Have a snapshot keep 64 KiB on the host."""
        directory = pathlib.Path(
            self.work, f'libvirt-{self.uuid}', '0123abcd')
        directory.mkdir(parents=True)
        (directory / 'scratch').write_bytes(b'x' * 65536)

    def test_running_snapshot_tells_its_progress(self):
        self.start_nova_compute()
        self.publish()
        self.scratch()
        with journal.new_entry(self.plan_, 'backup') as entry:
            entry.add(journal_base.Thing())
            [snapshot] = self.status(outstanding=False)['snapshots']
            text = self.text()[1]
            entry.remove(entry.records[0])
        self.assertEqual(
            ('running', 'uploading', 512 * units.Mi, 2 * units.Gi, ['thing']),
            tuple(snapshot[name] for name in (
                'state', 'phase', 'sent', 'size', 'resources')))
        [file] = snapshot['on_host']
        self.assertEqual(('scratch', True),
                         (file['kind'], file['bytes'] >= 65536))
        for part in ('uploading', '512.0 MiB', '2.0 GiB', 'scratch 64 KiB'):
            self.assertIn(part, text)

    def test_snapshot_that_only_begins_is_shown(self):
        self.start_nova_compute()
        self.publish()
        [snapshot] = self.status(outstanding=False)['snapshots']
        self.assertEqual(('running', 'backup', []), tuple(
            snapshot[name] for name in ('state', 'strategy', 'resources')))

    def test_interrupted_snapshot_is_not_shown_as_running(self):
        self.leave()
        [snapshot] = self.status(outstanding=True)['snapshots']
        self.assertEqual(('waiting', None),
                         (snapshot['state'], snapshot['phase']))

    def test_overlay_of_an_interrupted_snapshot_is_shown(self):
        self.flags(instances_path=self.work)
        directory = pathlib.Path(self.work, self.uuid)
        directory.mkdir()
        (directory / 'disk.snapext').write_bytes(b'x' * 4096)
        self.leave()
        self.assertIn(f'overlay {directory}/disk.snapext', self.text()[1])

    def test_trial_that_was_interrupted_is_shown(self):
        with trial.own_journal():
            self.leave()
        [guest] = self.status(outstanding=True)['trials']
        self.assertEqual(self.uuid, guest['uuid'])
        self.assertIn('check --trial', self.text()[1])

    def test_metrics_are_those_of_the_status(self):
        self.start_nova_compute()
        self.publish()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self.assertEqual(0, main.main(
                ['status', '--format', 'prometheus']))
        self.assertIn(f'nova_snapext_snapshot_sent_bytes{{instance_uuid='
                      f'"{self.uuid}"}} {512 * units.Mi}',
                      printed.getvalue())

    def test_metrics_of_an_unreadable_journal_say_so(self):
        self.flags(journal_directory='/dev/null/x', group='snapext')
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), \
                contextlib.redirect_stderr(io.StringIO()):
            self.assertEqual(exits.NOT_DONE, main.main(
                ['status', '--format', 'prometheus']))
        self.assertIn('nova_snapext_status_success 0', printed.getvalue())

    def test_metrics_after_any_error_say_so(self):
        for target, name in ((status, 'collect'), (prometheus, '_lines')):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), \
                    contextlib.redirect_stderr(io.StringIO()), \
                    mock.patch.object(target, name, side_effect=KeyError):
                self.assertEqual(exits.NOT_DONE, main.main(
                    ['status', '--format', 'prometheus']))
            self.assertIn('nova_snapext_status_success 0\n',
                          printed.getvalue())

    def test_unreadable_journal_is_reported(self):
        self.flags(journal_directory='/dev/null/x', group='snapext')
        code, printed = self.text()
        self.assertEqual(exits.NOT_DONE, code)
        self.assertIn("can't be used", printed)
