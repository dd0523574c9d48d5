# SPDX-License-Identifier: Apache-2.0
"""Real NBD servers, each a child process of the test."""

import os
import signal
import socket
import subprocess

import fixtures

# Passes the listening socket by socket activation, sd_listen_fds(3): a client
# can connect before the server is up, so the tests need not wait for it. By
# bash: Debian's sh knows no descriptors above 9, and a test process that has
# run many tests has no free one below.
ACTIVATE = 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&{fd}'


class Server(fixtures.Fixture):
    """An NBD server on a Unix socket.

    :param command: a server that supports socket activation
    """

    def __init__(self, *command):
        self.command = command

    def _setUp(self):
        # The path has characters that a URI, or an option of QEMU, must
        # escape.
        directory = os.path.join(self.useFixture(fixtures.TempDir()).path,
                                 'a&b c+d%,')
        os.mkdir(directory)
        self.socket = os.path.join(directory, 'nbd')
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.socket)
            listener.listen()
            self.process = subprocess.Popen(
                ['bash', '-c', ACTIVATE.format(fd=listener.fileno()), 'bash',
                 *self.command],
                pass_fds=[listener.fileno()], stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL)
        self.addCleanup(self.process.wait)
        self.addCleanup(self.process.kill)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def freeze(self):
        """Stop its responses, with all its connections open."""
        self.process.send_signal(signal.SIGSTOP)


def qemu_nbd(path, image_format='qcow2', export='vda'):
    """Return a server of an image, as the strategies start it."""
    return Server('qemu-nbd', '--read-only', '--persistent', '--shared=2',
                  '--format', image_format, '--export-name', export, path)


def nbdkit(*arguments):
    """Return a server of an nbdkit plugin."""
    return Server('nbdkit', '--foreground', *arguments)


def qemu_img(*arguments):
    return subprocess.run(['qemu-img', *arguments], check=True,
                          capture_output=True, text=True).stdout


def qemu_io(path, *commands, image_format='qcow2'):
    """Write to an image.

    :param commands: of qemu-io, such as ``write -P 1 0 64k``
    """
    arguments = [part for command in commands for part in ('-c', command)]
    subprocess.run(['qemu-io', '-f', image_format, *arguments, path],
                   check=True, capture_output=True)
