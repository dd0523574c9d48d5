# SPDX-License-Identifier: Apache-2.0

import os
import threading
from unittest import mock

from nova import utils
from oslo_context import context

from nova_snapext import background
from tests.unit import base


def _niceness():
    # Of the calling thread alone.
    return os.getpriority(os.PRIO_PROCESS, 0)


def _niceness_of_a_child():
    found = []
    child = threading.Thread(target=lambda: found.append(_niceness()))
    child.start()
    child.join()
    return found[0]


class BackgroundTest(base.TestCase):

    def test_it_yields_and_so_do_the_threads_it_starts_but_no_other(self):
        before = _niceness()
        self.flags(niceness=3, group='snapext')
        for function in (_niceness, _niceness_of_a_child):
            self.assertEqual(before + 3, background.run(function))
        self.assertEqual(before, _niceness())

    def test_its_log_has_the_request(self):
        request = context.RequestContext(overwrite=True)
        self.assertIs(request, background.run(context.get_current))

    def test_what_it_raises_is_raised(self):
        self.assertRaises(ZeroDivisionError, background.run, divmod, 1, 0)

    def test_a_thread_that_eventlet_lends_keeps_its_priority(self):
        before = _niceness()
        with mock.patch.object(utils, 'concurrency_mode_threading',
                               return_value=False), \
                mock.patch.object(utils, 'tpool_wrap', lambda target: target):
            self.assertEqual(before, background.run(_niceness))
