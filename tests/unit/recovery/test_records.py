# SPDX-License-Identifier: Apache-2.0
"""Records of a journal that is nonsense."""

import os

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext.journal import schema
from nova_snapext.recovery import recover
from nova_snapext.resources import overlay
from tests.unit import json_values
from tests.unit.recovery import base

UUID = 'b48316c5-71e8-45e4-9884-6c78055b9b13'
LIMIT = {'original': {}, 'limits': [], 'paused': False}
OVERLAY = {'path': '/i/disk.snapext', 'base_chain': ['/i/disk', None],
           'qemu': '1 2', 'may_resume': True, 'write_limit': LIMIT,
           'owner_label': {'dac': '+0:+6', 'ref_dac': '1',
                           'timestamp_dac': '1795697446'}}
DEVICE = ("<hostdev mode='subsystem' type='pci'><source><address "
          "domain='0x0000' bus='0x02' slot='0x00' function='0x1'/></source>"
          "</hostdev>")

#: By kind, what a resource records.
RECORDS = {
    'backup job': {'directory': f'/w/libvirt-{UUID}/01234567',
                   'may_resume': True},
    'guest filesystems': {'agent': True, 'qemu': ''},
    'internal snapshot': {'paths': ['/i/disk'], 'was_running': False},
    'managed save': {'overlay': OVERLAY, 'was_running': True, 'boot': 'b',
                     'resume_requested': False},
    'native snapshot': {'power_state': 1, 'directory': None},
    'NBD export': {'directory': f'/w/libvirt-{UUID}/01234567'},
    'overlay': OVERLAY,
    'passthrough devices': {
        'devices': [{'name': 'PCI device 0000:02:00.1', 'alias': None,
                     'xml': DEVICE}],
        'persistent': ['PCI device 0000:02:00.1']},
    'work directory': {'path': f'/w/libvirt-{UUID}/01234567'},
}


def allowed(kind, path):
    """Return other types of JSON that are right at a path of a record."""
    name = next((key for key in reversed(path) if isinstance(key, str)), '')
    is_item = bool(path) and path[-1] != name
    if (kind, name) == ('native snapshot', 'directory') or (
            name == 'alias' or (name == 'base_chain' and is_item)):
        return (type(None),)
    if name in ('base_chain', 'paths', 'limits', 'devices', 'persistent'):
        return () if is_item else (list,)
    return (dict,) if name in ('original', 'owner_label') else ()


class RecordsTest(base.RecoveryTestCase):

    def types(self):
        """Return our classes of resources that have a schema."""
        types = recover.resource_types(self.driver)
        return {kind: types[kind] for kind in RECORDS}

    def test_record_of_each_kind_has_a_schema(self):
        for kind, resource_type in self.types().items():
            self.assertIsNot(schema.OBJECT, resource_type.record_schema)
            resource_type.check_record(RECORDS[kind])

    def test_overlay_s_record_has_its_schema(self):
        overlay.Overlay.check_record(self.overlay()[1][1])

    def test_value_of_another_type_is_refused_wherever_it_is(self):
        for kind, resource_type in self.types().items():
            for path in json_values.places(RECORDS[kind]):
                for value in (None, [], {}, 7.5, 'a\0b', [[]], {'a': 1}):
                    if type(value) in allowed(kind, path):
                        continue
                    self.assertRaises(
                        exception.JournalRecordError,
                        resource_type.check_record,
                        json_values.changed(RECORDS[kind], path, value))

    def test_nonsense_fails_alone_and_stays(self):
        directory = f'{self.journal}/outside'
        os.mkdir(directory)
        types = self.types()
        self.leave(('work directory', {'path': directory}),
                   ('work directory', {'path': '/'}),
                   ('NBD export', {'directory': directory}),
                   ('backup job', {'directory': directory,
                                   'was_running': True}),
                   ('native snapshot', {'power_state': 1,
                                        'directory': directory}),
                   ('guest filesystems', {'agent': 'no'}),
                   ('internal snapshot', {'paths': '/etc/passwd',
                                          'was_running': False}),
                   ('overlay', OVERLAY | {'path': '/etc/passwd'}),
                   ('passthrough devices', {'devices': [{
                       'name': 'n', 'alias': None,
                       'xml': '<disk type="block"/>'}], 'persistent': []}),
                   ('spell', {}),
                   ('guest filesystems', {'agent': True, 'qemu': ''}))
        self.assertFalse(self.recover_all())
        self.assertTrue(os.path.isdir(directory))
        [entry] = journal.entries()
        self.assertEqual(10, len(entry.records))
        for kind in types.keys() & {record.kind for record in entry.records}:
            self.assertIn(kind, entry.problem)

    def test_device_of_another_kind_is_not_attached(self):
        kind = recover.resource_types(self.driver)['passthrough devices']
        good = RECORDS['passthrough devices']
        kind.restore(self.driver, self.plan_, good)
        for xml in ('<disk type="block"><source dev="/dev/sda"/></disk>',
                    '', '<', '<hostdev type="pci"/>',
                    '<hostdev type="usb"/>',
                    DEVICE.replace('0x02', '0x03'),
                    DEVICE.replace('0x02', 'x'),
                    f'<devices>{DEVICE}{DEVICE}</devices>'):
            self.assertRaises(
                exception.JournalRecordError, kind.restore, self.driver,
                self.plan_,
                json_values.changed(good, ('devices', 0, 'xml'), xml))
