# SPDX-License-Identifier: Apache-2.0

import copy
import json

from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext.journal import schema
from tests.unit import base as unit_base
from tests.unit.journal import base
from tests.unit import json_values

DATA = ('records', 0, 'data')

#: By path, types that are right there.
ALLOWED = {
    ('version',): (int,), ('host',): (str,), ('problem',): (type(None),),
    ('disk', 'unsupported_reason'): (type(None),), ('records',): (list,),
    DATA: (dict,), ('records', 0, 'blocks_start'): (bool,),
    ('records', 0, 'blocks_snapshot'): (bool,)}


def nested(depth):
    return '[' * depth + ']' * depth


class SchemaTest(base.JournalTestCase):

    def setUp(self):
        super().setUp()
        with journal.new_entry(
                self.plan_, 'external', base.Thing()) as entry:
            self.good = self.content()
            entry.remove(entry.records[0])

    def load(self, content):
        text = content if isinstance(content, bytes) else json.dumps(
            content).encode()
        return schema.load(text, schema.ENTRY)

    def assert_invalid(self, content):
        error = self.assertRaises(
            exception.JournalFileInvalid, self.load, content)
        self.assertTrue(str(error))
        self.assertLess(len(str(error)), 500)
        return str(error)

    def test_what_was_written_is_read(self):
        content = self.load(self.good)
        self.assertEqual(self.plan_.instance.uuid, content['instance_uuid'])
        self.assertEqual('thing', content['records'][0]['kind'])

    def test_value_of_another_type_is_invalid_wherever_it_is(self):
        for path in json_values.places(self.good):
            if path[:3] == DATA and len(path) > 3:
                continue  # its resource checks it
            for value in (None, [], {}, 7, 1.5, True, 'a\0b', [[]],
                          {'a': 1}):
                if type(value) not in ALLOWED.get(path, ()) or (
                        value == [[]]):
                    self.assert_invalid(json_values.changed(
                        self.good, path, value))

    def test_missing_and_unknown_names_are_invalid(self):
        for path in json_values.places(self.good):
            if path and isinstance(path[-1], str) and (
                    path == DATA or path[:3] != DATA):
                content = copy.deepcopy(self.good)
                inner = content
                for key in path[:-1]:
                    inner = inner[key]
                del inner[path[-1]]
                self.assert_invalid(content)
        self.assert_invalid(self.good | {'other': 1})
        self.assert_invalid(self.good | {'disk': self.good['disk'] | {
            'other': 1}})

    def test_text_that_is_no_document_of_ours_is_invalid(self):
        for text in (b'', b'{', b'[]', b'7', b'null', b'"x"', b'{}',
                     b'\0' * 512, b'\xff\xfe{\0}\0', b'\x80',
                     b'\xef\xbb\xbf{}', b'{"version": 1}',
                     json.dumps(self.good)[:-3].encode()):
            self.assert_invalid(text)

    def test_nesting_that_exhausts_the_stack_is_invalid(self):
        for depth in (schema.MAX_DEPTH + 1, 900, 100_000):
            for text in (nested(depth), '{"a":' * depth + '1' + '}' * depth):
                self.assert_invalid(text.encode())
                self.assert_invalid(json.dumps(json_values.changed(
                    self.good, ('records', 0, 'data'), {'a': '@'})).replace(
                        '"@"', text).encode())
        self.assert_invalid(b'[' * 1_000_000)

    def test_numbers_that_are_none_are_invalid(self):
        for number in ('NaN', 'Infinity', '-Infinity', '1e999', '-1e999',
                       '9' * 5000):
            text = json.dumps(json_values.changed(
                self.good, ('records', 0, 'data'), {'a': '@'})).replace(
                    '"@"', number)
            self.assert_invalid(text.encode())

    def test_name_that_is_there_twice_is_invalid(self):
        text = json.dumps(self.good)
        self.assert_invalid(
            (text[:-1] + ', "image_id": "' + uuids.other + '"}').encode())

    def test_version_decides_before_anything_else(self):
        for content in ({'version': 2}, {'version': 2, 'anything': [{}]},
                        self.good | {'version': 10 ** 4000}):
            error = self.assertRaises(
                exception.JournalFileNewer, self.load, content)
            self.assertLess(len(str(error)), 500)
        for version in (0, -1, True, 1.0, '2', None, [2]):
            self.assert_invalid(self.good | {'version': version})

    def test_file_of_another_host_is_told_with_a_remedy(self):
        error = self.assertRaises(
            exception.JournalFileForeign, self.load,
            self.good | {'host': 'elsewhere'})
        for text in ('elsewhere', self.CONF.host, 'journal_directory'):
            self.assertIn(text, str(error))

    def test_uuid_has_the_form_that_nova_gives_it(self):
        for name in ('instance_uuid', 'image_id'):
            for uuid in ('', '../../etc/passwd', 'x', uuids.other + '\n',
                         uuids.other.upper() + 'A',
                         uuids.other.replace('-', ''),
                         '{' + uuids.other + '}'):
                self.assert_invalid(self.good | {name: uuid})

    def test_image_is_read_as_strictly(self):
        with journal.new_image(self.plan_, 'external', True) as image:
            with open(image.path) as file:
                good = json.load(file)
            image.remove()
        self.assertEqual(
            unit_base.IMAGE_ID,
            schema.load(json.dumps(good).encode(), schema.IMAGE)['image_id'])
        for path in json_values.places(good):
            for value in ({}, [], 7, {'a': 1}, 1.5):
                if path == ('version',) and value == 7:
                    continue
                self.assertRaises(
                    exception.JournalFileInvalid, schema.load,
                    json.dumps(json_values.changed(
                        good, path, value)).encode(),
                    schema.IMAGE)
