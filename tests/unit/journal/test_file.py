# SPDX-License-Identifier: Apache-2.0

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import socket
import stat
import subprocess
from unittest import mock

from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext.journal import schema
from tests.unit import base as unit_base
from tests.unit.journal import base


class EntryTest(base.JournalTestCase):

    def test_entry_exists_as_long_as_its_snapshot(self):
        with journal.new_entry(self.plan_, 'external') as entry:
            content = self.content()
            self.assertEqual(
                (1, self.plan_.instance.uuid, unit_base.IMAGE_ID, 'external',
                 []),
                tuple(content[name] for name in (
                    'version', 'instance_uuid', 'image_id', 'strategy',
                    'records')))
            found = journal.find(entry.instance_uuid)
            self.assertEqual((entry.disk, entry.instance_name),
                             (found.disk, found.instance_name))
        self.assertEqual([], os.listdir(self.journal))

    def test_directory_is_readable_by_nova_alone(self):
        with journal.new_entry(self.plan_, 'external'):
            self.assertEqual(0o700, os.stat(self.journal).st_mode & 0o777)

    def test_first_resources_are_recorded_with_the_entry(self):
        thing = base.Thing()
        with journal.new_entry(self.plan_, 'external', thing) as entry:
            [record] = entry.records
            self.assertEqual(
                [{'kind': 'thing', 'data': {'state': 'new'},
                  'blocks_start': False, 'blocks_snapshot': True}],
                self.content()['records'])
            thing.state = 'changed'
            thing.save()
            self.assertEqual('changed',
                             self.content()['records'][0]['data']['state'])
            entry.remove(record)

    def test_record_has_what_its_resource_blocks(self):
        class Vital(base.Thing):
            blocks_start = True
            blocks_snapshot = False

        with mock.patch.object(journal.JournalEntry, 'close'), \
                journal.new_entry(self.plan_, 'external') as entry:
            entry.add(Vital())
        [record] = journal.find(entry.instance_uuid).records
        self.assertTrue(record.blocks_start)
        self.assertFalse(record.blocks_snapshot)

    def test_released_resource_does_not_bring_back_the_entry(self):
        thing = base.Thing()
        with journal.new_entry(self.plan_, 'external') as entry:
            entry.remove(entry.add(thing))
        thing.save()
        self.assertEqual([], os.listdir(self.journal))

    def test_second_snapshot_of_an_instance_is_refused(self):
        def again():
            with journal.new_entry(self.plan_, 'backup'):
                pass

        with journal.new_entry(self.plan_, 'external'):
            error = self.assertRaises(exception.SnapshotInProgress, again)
            self.assertIn(self.path, str(error))
            self.assertEqual('external', self.content()['strategy'])

    def test_instance_without_a_snapshot_has_no_entry(self):
        self.assertIsNone(journal.find(uuids.other))
        self.flags(journal_directory=f'{self.journal}/none', group='snapext')
        self.assertEqual([], journal.entries())

    def test_unusable_journal_is_reported_and_nothing_begins(self):
        def use(context):
            with context:
                self.fail('it began')

        self.flags(journal_directory='/dev/null/x', group='snapext')
        for context in (journal.new_entry(self.plan_, 'external'),
                        journal.locked()):
            error = self.assertRaises(exception.JournalFailed, use, context)
            self.assertIn('/dev/null/x', str(error))

    def test_steps_are_logged_for_debugging(self):
        thing = base.Thing()
        with self.assertLogs('nova_snapext.journal', 'DEBUG') as logs, \
                journal.new_entry(self.plan_, 'external') as entry:
            entry.remove(entry.add(thing))
        for text in ('entry created', 'added thing', 'removed thing',
                     'entry removed'):
            self.assertIn(text, ' '.join(logs.output))


class LeftTest(base.JournalTestCase):
    """Entries that a snapshot has left."""

    def leave(self, *things):
        with journal.new_entry(self.plan_, 'external') as entry:
            for thing in things or (base.Thing(),):
                entry.add(thing)
        return entry

    def test_why_it_is_left_is_in_the_entry(self):
        entry = self.leave()
        self.assertIn('thing', self.content()['problem'])
        entry.save_problem('no libvirtd')
        self.assertEqual('no libvirtd', self.content()['problem'])

    def test_problem_that_can_not_be_written_is_no_error(self):
        entry = self.leave()
        with mock.patch('os.fsync', side_effect=OSError('full')):
            entry.save_problem('no libvirtd')
        self.assertNotEqual('no libvirtd', self.content()['problem'])

    def test_entry_that_can_not_be_removed_is_no_error(self):
        with mock.patch('os.unlink', side_effect=OSError('read-only')), \
                self.assertLogs('nova_snapext.journal', 'WARNING') as logs:
            entry = journal.JournalEntry(
                self.plan_.instance.uuid, 'i', self.plan_.disk,
                unit_base.IMAGE_ID, 'external', '2026-01-01T00:00:00')
            entry.close()
        self.assertIn(self.path, ' '.join(logs.output))

    def test_entry_that_is_set_apart_excludes_no_other(self):
        thing = base.Thing()
        left = self.leave(thing)
        left.set_apart()
        self.assertIsNone(journal.find(self.plan_.instance.uuid))
        plan = dataclasses.replace(self.plan_, image_id=uuids.image)
        with journal.new_entry(plan, 'backup') as entry:
            self.assertEqual(
                {('external', True), ('backup', False)},
                {(found.strategy, found.is_set_apart) for found in
                 journal.find_all(self.plan_.instance.uuid)})
            journal.require_usable(self.plan_.instance.uuid)
            entry.add(base.Thing())
        entry.set_apart()
        self.assertEqual(2, len(journal.entries()))
        # What is read from the file writes the same file.
        for found in journal.entries():
            found.remove(found.records[0])
            found.close()
        self.assertEqual([], os.listdir(self.journal))

    def test_setting_apart_is_durable_and_can_be_repeated(self):
        left = self.leave()
        with mock.patch('os.fsync', side_effect=os.fsync) as fsync:
            left.set_apart()
            left.set_apart()
        self.assertEqual(1, fsync.call_count)

    def test_entry_that_can_not_be_set_apart_is_unchanged(self):
        left = self.leave()
        with mock.patch('os.rename', side_effect=OSError('read-only')):
            self.assertRaises(OSError, left.set_apart)
        self.assertEqual(self.path, left.path)
        self.assertEqual(1, len(journal.entries()))


class ReadTest(base.JournalTestCase):

    def setUp(self):
        super().setUp()
        with journal.new_entry(self.plan_, 'external'):
            self.good = self.content()
        self.uuid = self.plan_.instance.uuid

    def put(self, text, path=None):
        with open(path or self.path, 'w') as file:
            file.write(text)

    def files(self):
        """Return the state of all files in the directory."""
        return {name: (os.lstat(path).st_ino, os.lstat(path).st_mode,
                       os.lstat(path).st_mtime_ns)
                for name in os.listdir(self.journal)
                for path in [os.path.join(self.journal, name)]}

    def read_all(self):
        """Call all that reads, and return what is found unusable."""
        self.assertEqual([], journal.entries())
        self.assertIsNone(journal.find(self.uuid))
        self.assertEqual([], journal.find_all(self.uuid))
        self.assertEqual([], journal.images())
        self.assertFalse(journal.is_locked_by_another())
        return journal.unusable()

    def assert_blocks(self, *texts):
        error = self.assertRaises(exception.JournalEntryUnusable,
                                  journal.require_usable, self.uuid)
        self.assertTrue(error.blocks_start)
        for text in (self.uuid, self.path, *texts):
            self.assertIn(text, str(error))

    def assert_set_aside(self):
        """Check that the next start sets the only file aside."""
        before = self.files()
        with self.assertNoLogs('nova_snapext', 'WARNING'):
            [file] = self.read_all()
        self.assertIsInstance(file.problem, exception.JournalFileInvalid)
        self.assertEqual((self.path, self.uuid),
                         (file.path, file.instance_uuid))
        self.assertEqual(before, self.files())
        self.assert_blocks()
        with self.assertLogs('nova_snapext.journal', 'ERROR') as logs:
            journal.finish_writes()
            journal.set_aside_unreadable()
        self.assertIn('disk.snapext', ' '.join(logs.output))
        self.assertEqual([f'{self.path}.unreadable'],
                         journal.set_aside_files())
        self.assertEqual([], journal.unusable())
        journal.require_usable(self.uuid)

    def assert_left_alone(self, problem, *texts):
        """Check that nobody changes the only file, which blocks."""
        before = self.files()
        [file] = self.read_all()
        self.assertIsInstance(file.problem, problem)
        journal.finish_writes()
        with self.assertLogs('nova_snapext.journal', 'ERROR') as logs:
            journal.set_aside_unreadable()
        self.assertIn(self.path, ' '.join(logs.output))
        self.assert_blocks(*texts)
        self.assertEqual(before, self.files())

    def test_nonsense_is_only_set_aside_by_a_start(self):
        for text in ('', '{', '[]', '7', '{"version": 1}', '\0' * 512,
                     '[' * 100_000,
                     json.dumps(self.good | {'records': [{'kind': 'x'}]}),
                     json.dumps(self.good | {'records': [
                         {'kind': None, 'data': {}, 'blocks_start': True}]}),
                     json.dumps(self.good | {'records': [
                         {'kind': [], 'data': {}, 'blocks_start': True}]}),
                     json.dumps(self.good | {'disk': {'path': '/d'}}),
                     json.dumps(self.good | {
                         'instance_uuid': '../../etc/passwd'}),
                     json.dumps(self.good | {'instance_uuid': uuids.other})):
            self.put(text)
            self.assert_set_aside()
            os.unlink(f'{self.path}.unreadable')

    def test_what_is_no_regular_file_is_set_aside(self):
        def make_socket(path):
            listener = socket.socket(socket.AF_UNIX)
            self.addCleanup(listener.close)
            # Its path can have 107 bytes.
            with contextlib.chdir(os.path.dirname(path)):
                listener.bind(os.path.basename(path))

        self.put(json.dumps(self.good), f'{self.journal}/good')
        for make, remove in (
            (os.mkdir, os.rmdir), (os.mkfifo, os.unlink),
            (make_socket, os.unlink),
            (lambda path: os.symlink(f'{self.journal}/good', path),
             os.unlink),
            (lambda path: os.symlink(path, path), os.unlink),
            (lambda path: os.symlink('/dev/zero', path), os.unlink),
        ):
            make(self.path)
            self.assert_set_aside()
            remove(f'{self.path}.unreadable')

    def test_file_that_does_not_fit_into_memory_is_set_aside(self):
        with open(self.path, 'w') as file:
            file.truncate(2 ** 40)
        self.assert_set_aside()

    def test_entry_that_nobody_would_read_is_not_written(self):
        with journal.new_entry(self.plan_, 'external') as entry:
            self.assertRaises(OSError, entry.add, base.Thing('x' * 2 ** 20))
            self.assertEqual([], self.content()['records'])

    def test_names_with_any_characters_are_no_error(self):
        for name in ('x.json', '.json', '\n.json', '\udcff.json',
                     '\x1b[2J.image', 'a b;$(c).json', 'x' * 250 + '.json',
                     f'{self.uuid}.{self.uuid}.{self.uuid}.json'):
            self.put('{}', f'{self.journal}/{name}')
            self.assertEqual(1, len(self.read_all()))
            journal.finish_writes()
            journal.set_aside_unreadable()
            journal.require_usable(self.uuid)
            for left in os.listdir(self.journal):
                os.unlink(f'{self.journal}/{left}')

    def test_earlier_file_that_was_set_aside_is_kept(self):
        for text in ('first', 'second', 'third'):
            self.put(text)
            journal.set_aside_unreadable()
        self.assertEqual(
            ['first', 'second', 'third'],
            [pathlib.Path(path).read_text()
             for path in journal.set_aside_files()])

    def test_entry_of_a_newer_version_is_left_alone_and_blocks(self):
        self.put(json.dumps(self.good | {'version': 2, 'new': [None]}))
        self.assert_left_alone(exception.JournalFileNewer, 'version 2')

    def test_entry_of_a_newer_version_is_read_after_the_upgrade(self):
        self.put(json.dumps(self.good | {'version': 2}))
        journal.finish_writes()
        journal.set_aside_unreadable()
        with mock.patch.object(schema, 'VERSION', 2):
            journal.require_usable(self.uuid)
            self.assertEqual(1, len(journal.entries()))

    def test_first_write_of_a_newer_version_is_left_alone_and_blocks(self):
        self.path = f'{self.path}.new'
        self.put(json.dumps(self.good | {'version': 2}))
        self.assert_left_alone(exception.JournalFileNewer, 'version 2')

    def test_entry_of_another_host_is_left_alone_and_blocks(self):
        self.put(json.dumps(self.good | {'host': 'elsewhere'}))
        self.assert_left_alone(exception.JournalFileForeign, 'elsewhere')

    def test_entry_that_every_user_could_write_is_not_used(self):
        self.put(json.dumps(self.good))
        os.chmod(self.path, 0o666)
        self.assert_left_alone(exception.JournalFileInaccessible, 'chmod')
        os.chmod(self.path, 0o664)
        self.assertEqual(1, len(journal.entries()))

    def test_entry_of_another_user_is_not_used(self):
        self.put(json.dumps(self.good))
        with mock.patch('os.fstat', return_value=mock.Mock(
                st_mode=stat.S_IFREG, st_size=1, st_uid=4242)):
            self.assert_left_alone(exception.JournalFileInaccessible, '4242')

    def test_file_that_can_not_be_read_now_is_left_alone_and_blocks(self):
        def fail(path, *args, **kwargs):
            if path == self.path:
                raise failure
            return open_(path, *args, **kwargs)

        self.put(json.dumps(self.good))
        open_ = os.open
        for failure in (PermissionError('closed'), OSError('I/O error'),
                        OSError(errno.EMFILE, 'too many')):
            with mock.patch('os.open', fail):
                self.assert_left_alone(
                    exception.JournalFileInaccessible, str(failure))
        self.assertEqual(1, len(journal.entries()))

    def test_other_entries_are_read_whatever_one_is(self):
        with journal.new_entry(self.plan_, 'external') as entry:
            self.put('[' * 100_000, f'{self.journal}/0.json')
            os.mkfifo(f'{self.journal}/1.json')
            self.assertEqual([entry.instance_uuid], [
                found.instance_uuid for found in journal.entries()])

    def test_nonsense_does_not_keep_an_entry_from_being_written(self):
        for make in (os.mkfifo, lambda path: os.symlink('/dev/full', path)):
            make(f'{self.path}.new')
            with journal.new_entry(self.plan_, 'external') as entry:
                entry.remove(entry.add(base.Thing()))
            self.assertEqual([], os.listdir(self.journal))
        os.mkdir(f'{self.path}.new')
        self.assertRaises(
            exception.JournalFailed,
            journal.new_entry(self.plan_, 'external').__enter__)
        # The next start repairs it.
        journal.finish_writes()
        with journal.new_entry(self.plan_, 'external') as entry:
            self.assertEqual(1, len(journal.entries()))

    def test_write_that_fails_leaves_no_file(self):
        with journal.new_entry(self.plan_, 'external') as entry, \
                mock.patch('os.fsync', side_effect=OSError('full')):
            self.assertRaises(OSError, entry.add, base.Thing())
            self.assertEqual([os.path.basename(self.path)],
                             os.listdir(self.journal))

    def test_crash_in_the_first_write_leaves_a_whole_entry_or_none(self):
        whole = json.dumps(self.good)
        for text, found in ((whole, 1), (whole[:-9], 0), ('', 0)):
            with open(f'{self.path}.new', 'w') as file:
                file.write(text)
            journal.finish_writes()
            self.assertEqual(found, len(journal.entries()))
            self.assertFalse(os.path.exists(f'{self.path}.new'))
            if found:
                os.unlink(self.path)

    def test_crash_in_a_later_write_leaves_the_previous_entry(self):
        with journal.new_entry(self.plan_, 'external'):
            with open(f'{self.path}.new', 'w') as file:
                file.write('{"versi')
            self.assertEqual(1, len(journal.entries()))
            os.unlink(f'{self.path}.new')


class LockTest(base.JournalTestCase):

    def lock_in_another_process(self):
        process = subprocess.Popen(
            ['flock', f'{self.journal}/lock', 'cat'], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE)
        self.addCleanup(process.wait)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stdin.close)
        process.stdin.write(b'locked')
        process.stdin.flush()
        self.assertEqual(b'locked', process.stdout.read(6))

    def test_second_process_is_refused(self):
        def again():
            with journal.locked():
                pass

        with journal.locked():
            error = self.assertRaises(exception.JournalLocked, again)
            self.assertIn('nova-compute', str(error))
        again()

    def test_lock_of_another_process_is_seen_and_that_of_this_one_is_not(
            self):
        self.assertFalse(journal.is_locked_by_another())
        self.assertEqual([], os.listdir(self.journal))
        with journal.locked():
            self.assertFalse(journal.is_locked_by_another())
        self.lock_in_another_process()
        self.assertTrue(journal.is_locked_by_another())

    def test_look_at_the_lock_does_not_keep_it(self):
        with journal.locked():
            pass
        self.assertFalse(journal.is_locked_by_another())
        with journal.locked():
            pass

    def test_time_of_the_lock_is_known(self):
        self.assertIsNone(journal.locked_since())
        with journal.locked():
            since = journal.locked_since()
            with journal.new_entry(self.plan_, 'external') as entry:
                self.assertLessEqual(since, entry.began_at)

    def test_directory_is_removed_if_it_has_nothing_but_the_lock(self):
        self.flags(journal_directory=f'{self.journal}/own', group='snapext')
        with journal.locked():
            with journal.new_image(self.plan_, 'external', True) as image:
                journal.remove_if_empty()
                self.assertEqual(2, len(os.listdir(f'{self.journal}/own')))
                image.remove()
            journal.remove_if_empty()
            self.assertEqual([], os.listdir(self.journal))

    def test_lock_that_its_owner_removes_is_no_lock(self):
        flock = fcntl.flock

        def remove_first(descriptor, operation):
            os.unlink(f'{self.journal}/lock')
            flock(descriptor, operation)

        with mock.patch.object(fcntl, 'flock', remove_first):
            self.assertRaises(exception.JournalLocked,
                              journal.locked().__enter__)
        with journal.locked():
            pass

    def test_nonsense_in_place_of_the_lock_is_set_aside(self):
        for make in (os.mkdir, os.mkfifo,
                     lambda path: os.symlink('/dev/full', path)):
            make(f'{self.journal}/lock')
            self.assertFalse(journal.is_locked_by_another())
            with journal.locked():
                self.assertTrue(os.path.isfile(f'{self.journal}/lock'))
            os.unlink(f'{self.journal}/lock')
        self.assertEqual(3, len(os.listdir(self.journal)))
