# SPDX-License-Identifier: Apache-2.0

import ast
import importlib
import pathlib
import pkgutil
import re

from oslotest import base

import nova_snapext
from nova_snapext import exception
from tests import known_defects

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / 'doc/source/admin/troubleshooting.rst'

#: Beginnings of texts on the page that are not ours: of oslo.privsep, and of
#: Nova with a part of ours.
FOREIGN = ('privsep helper command', 'InvalidDiskInfo')

#: Words at the beginning of a message that have to be in the documentation.
FIRST_WORDS = 5


def error_classes(parent=exception.SnapextError):
    """Return all classes of our errors that have a text of their own."""
    for child in parent.__subclasses__():
        if 'msg_fmt' in vars(child):
            yield child
        yield from error_classes(child)


def first_words(error):
    """Return the beginning of a message, with ``...`` for what is inserted."""
    text = re.sub(r'%\(\w+\)[sd]', '...', error.msg_fmt)
    return ' '.join(text.split()[:FIRST_WORDS])


def texts(path):
    """Return the texts of a module, with ``...`` for what is inserted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            text = ''.join(part.value if isinstance(part, ast.Constant)
                           else '...' for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = re.sub(r'%(\(\w+\))?[sdr]', '...', node.value)
        else:
            continue
        yield ' '.join(text.split())


class TroubleshootingTest(base.BaseTestCase):

    def test_every_quoted_text_is_one_of_the_code(self):
        code = [text for top in (ROOT / 'nova_snapext', ROOT / 'nova')
                for path in top.rglob('*.py') for text in texts(path)]
        quoted = re.findall(r'^ *``(.+)``$', PAGE.read_text(), re.MULTILINE)
        self.assertGreater(len(quoted), 50)
        self.assertEqual([], [
            text for text in quoted if not text.startswith(FOREIGN) and
            not any(re.sub(r'^\.\.\. |:? \.\.\.$', '', text) in known
                    for known in code)])

    def test_text_for_users_is_that_of_the_code(self):
        text = exception.FreezeFailed(
            strategy='', disk='', instance='', reason='').format_message()
        self.assertIn(text.partition('.')[0], ' '.join(
            PAGE.read_text().split()))

    def test_every_error_is_explained_by_its_first_words(self):
        for module in pkgutil.walk_packages(
                nova_snapext.__path__, 'nova_snapext.'):
            importlib.import_module(module.name)
        page = ' '.join(PAGE.read_text().split())
        missing = [f'{error.__name__}: {first_words(error)}'
                   for error in error_classes()
                   # Only ever the reason of another error.
                   if error.msg_fmt != '%(reason)s' and
                   first_words(error) not in page]
        self.assertEqual([], missing)


class KnownDefectsTest(base.BaseTestCase):

    def test_page_lists_the_table(self):
        self.assertEqual(
            known_defects.text(), known_defects.PAGE.read_text(),
            'Run "python -m tests.known_defects"')
