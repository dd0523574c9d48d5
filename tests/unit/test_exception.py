# SPDX-License-Identifier: Apache-2.0

import gc
import importlib
import pkgutil
import re
from unittest import mock
import weakref

from nova.compute import utils as compute_utils
from nova import exception as nova_exception
from oslotest import base
import requests

import nova_snapext
from nova_snapext import exception

#: What an argument of an error may contain: all of it is the host's.
SECRET = '/secret/4711'

#: Arguments that are the users' own, and that they may read.
OF_USERS = {'image', 'instance', 'job', 'strategy', 'source', 'user_reason'}

#: Names of what users install and set, which contain words of the host.
NAMES_OF_USERS = ('qemu-guest-agent', 'hw_qemu_guest_agent')


def error_classes(parent=exception.SnapextError):
    """Return all classes of our errors."""
    for child in parent.__subclasses__():
        yield child
        yield from error_classes(child)


def error_with(error_class, value):
    """Create an error whose arguments all have one value."""
    error = error_class.__new__(error_class)
    names = re.findall(r'%\((\w+)\)', error_class.msg_fmt)
    numbers = re.findall(r'%\((\w+)\)d', error_class.msg_fmt)
    kwargs = {name: 4711 if name in numbers else value for name in names}
    kwargs.update(user_reason='of the user')
    nova_exception.NovaException.__init__(error, **kwargs)
    return error


class UsersTest(base.BaseTestCase):
    """Nova stores what format_message() returns as the instance's fault."""

    def setUp(self):
        super().setUp()
        for module in pkgutil.walk_packages(
                nova_snapext.__path__, 'nova_snapext.'):
            importlib.import_module(module.name)

    def test_no_error_tells_users_what_is_of_the_host(self):
        for error_class in error_classes():
            shown = set(re.findall(r'%\((\w+)\)', error_class.user_msg_fmt))
            self.assertLessEqual(
                shown, OF_USERS | {'error'}, error_class)
            text = error_with(error_class, SECRET).format_message()
            for name in NAMES_OF_USERS:
                text = text.replace(name, '')
            for word in ('virsh', 'qemu', 'libvirt', '[snapext]'):
                self.assertNotIn(word, text, error_class)

    def test_default_text_names_the_class_alone(self):
        error = exception.CommitFailed(disk='vda', guest='g', reason=SECRET)
        self.assertIn(SECRET, str(error))
        self.assertNotIn(SECRET, error.format_message())
        self.assertIn('CommitFailed', error.format_message())

    def test_fault_of_the_instance_has_the_text_for_users(self):
        error = exception.FreezeFailed(
            strategy='backup', disk='vda', instance='i', reason=SECRET)
        fault = compute_utils.exception_to_dict(error)
        self.assertEqual(error.format_message(), fault['message'])
        self.assertNotIn(SECRET, fault['message'])

    def test_appended_text_is_for_operators(self):
        error = exception.UnexpectedState(reason='r')
        error.append(SECRET)
        self.assertEqual(f'r {SECRET}', str(error))
        self.assertNotIn(SECRET, error.format_message())


class Buffer:
    pass


class FreeFramesTest(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        # The collector would free them too, some time later.
        gc.disable()
        self.addCleanup(gc.enable)
        self.buffers = []

    def fail(self):
        buffer = Buffer()
        self.buffers.append(weakref.ref(buffer))
        # As urllib3's urlopen does: now it keeps itself.
        kept = ZeroDivisionError()
        raise kept

    def raised_by(self, function):
        try:
            function()
        except Exception as error:
            return error

    def assert_freed(self, function):
        error = self.raised_by(function)
        exception.free_frames(error)
        self.assertEqual([], [found for found in self.buffers
                              if found() is not None])
        self.assertIsNotNone(error.__traceback__)

    def test_variables_of_functions_that_have_failed_are_freed(self):
        self.assert_freed(self.fail)

    def test_variables_of_the_cause_are_freed(self):
        def fail_again():
            buffer = Buffer()
            self.buffers.append(weakref.ref(buffer))
            try:
                self.fail()
            except ZeroDivisionError as error:
                raise exception.SnapextError() from error

        self.assert_freed(fail_again)
        self.assertEqual(2, len(self.buffers))

    def test_variables_of_an_error_that_another_one_followed_are_freed(self):
        def fail_again():
            try:
                self.fail()
            finally:
                self.fail()

        self.assert_freed(fail_again)

    def test_variables_of_a_function_that_goes_on_are_kept(self):
        buffer = Buffer()
        try:
            self.fail()
        except ZeroDivisionError as error:
            exception.free_frames(error)
        self.assertIsNotNone(buffer)

    def test_body_of_a_failed_request_is_freed(self):
        def fail():
            buffer = Buffer()
            self.buffers.append(weakref.ref(buffer))
            raise requests.ConnectionError(request=mock.Mock(body=buffer))

        self.assert_freed(fail)

    def test_error_of_the_caller_is_left_alone(self):
        outer = self.raised_by(self.fail)
        try:
            raise outer
        except ZeroDivisionError:
            exception.free_frames(self.raised_by(self.fail), outer)
        self.assertIsNotNone(self.buffers[0]())
        self.assertIsNone(self.buffers[1]())
