# SPDX-License-Identifier: Apache-2.0

import importlib
import pathlib
import pkgutil
import re

from oslotest import base

import nova_snapext
from nova_snapext import exception
from tests import known_defects

PAGE = (pathlib.Path(__file__).parents[2] /
        'doc/source/admin/troubleshooting.rst')

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


class TroubleshootingTest(base.BaseTestCase):

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
