# SPDX-License-Identifier: Apache-2.0

import os
import threading
import unittest
from unittest import mock

from oslo_context import context

from nova_snapext import compat
from nova_snapext.snapshot import worker
from tests.unit import base


NATIVE_THREADS_ONLY = unittest.skipUnless(
    compat.concurrency_mode_threading(), 'of native threads')


def _niceness():
    # Linux returns that of the calling thread.
    return os.getpriority(os.PRIO_PROCESS, 0)


def _niceness_of_child():
    found = []
    child = threading.Thread(target=lambda: found.append(_niceness()))
    child.start()
    child.join()
    return found[0]


class WorkerTest(base.TestCase):

    @NATIVE_THREADS_ONLY
    def test_niceness_applies_to_worker_and_its_threads_only(self):
        before = _niceness()
        self.flags(worker_niceness=3, group='snapext')
        for function in (_niceness, _niceness_of_child):
            self.assertEqual(before + 3, worker.run(function))
        self.assertEqual(before, _niceness())

    @NATIVE_THREADS_ONLY
    def test_log_of_the_worker_has_the_request(self):
        request = context.RequestContext(overwrite=True)
        self.assertIs(request, worker.run(context.get_current))

    def test_error_of_the_function_is_raised(self):
        self.assertRaises(ZeroDivisionError, worker.run, divmod, 1, 0)

    def test_workers_get_half_of_eventlet_s_pool(self):
        with mock.patch.object(compat, 'concurrency_mode_threading',
                               return_value=False), \
                mock.patch.object(worker, 'EVENTLET_THREADS', 4):
            slots = worker.make_slots()
        taken = [slots.acquire(blocking=False) for _number in range(3)]
        self.assertEqual([True, True, False], taken)

    def test_thread_of_eventlet_s_pool_keeps_its_niceness(self):
        before = _niceness()
        with mock.patch.object(compat, 'concurrency_mode_threading',
                               return_value=False), \
                mock.patch.object(compat, 'tpool_wrap', lambda target: target):
            self.assertEqual(before, worker.run(_niceness))
