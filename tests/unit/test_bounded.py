# SPDX-License-Identifier: Apache-2.0

import os
import signal
import threading
import time
import types

from oslotest import base

from nova_snapext import bounded
from nova_snapext import compat


class CallTest(base.BaseTestCase):

    def hang(self, module, seconds=0.01):
        """Call a function of a module, which waits for somebody."""
        event = threading.Event()
        self.addCleanup(event.set)
        code = types.ModuleType(module)
        exec('def wait(event): event.wait()', vars(code))
        return str(self.assertRaises(
            bounded.NoResponse, bounded.call, lambda: code.wait(event),
            seconds))

    def test_result_is_returned(self):
        self.assertEqual(3, bounded.call(lambda: 3, 60))
        self.assertIsNone(bounded.call(lambda: None, 60))

    def test_error_is_raised(self):
        self.assertRaises(ZeroDivisionError, bounded.call, lambda: 1 // 0, 60)

    def test_who_does_not_respond_is_said(self):
        if not compat.concurrency_mode_threading():
            self.skipTest('Python does not know the stacks of green threads')
        for module, peer in (
                ('libvirt', 'libvirtd'),
                ('oslo_messaging.rpc.client', 'RabbitMQ or nova-conductor'),
                ('keystoneauth1.session', 'Glance or Keystone'),
                ('nova_snapext.hypervisor.ceph', 'Ceph'),
                ('libvirtx', 'a file system, or a service')):
            self.assertEqual(f'{peer} did not respond for 0.01 seconds',
                             self.hang(module))

    def test_interrupted_call_ends_before_the_caller_cleans_up(self):
        if not compat.concurrency_mode_threading():
            self.skipTest('a signal arrives in any green thread')
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, handler)
        ended = []

        def interrupted():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            ended.append(True)

        self.assertRaises(KeyboardInterrupt, bounded.call, interrupted, 60)
        self.assertEqual([True], ended)
