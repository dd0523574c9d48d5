# SPDX-License-Identifier: Apache-2.0
"""The command line of tools/debian-rig."""

import argparse
import os
import signal
import sys
import types

from debianrig import rig
from devcloud import errors

DESCRIPTION = """\
Run tools/test inside a tree of another Debian release, with its libvirt, QEMU
and Python. The tree stays in /var/lib/snapext-debian-rig (or in
$SNAPEXT_DEBIAN_RIG_DIR), so that the next run is faster.
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog='debian-rig', description=DESCRIPTION)
    top.add_argument('arguments', nargs=argparse.REMAINDER,
                     metavar='ARGUMENT', help='argument of tools/test '
                     '(functional)')
    top.add_argument('--suite', default=rig.SUITE,
                     help='name of the release: trixie is Debian 13, sid is '
                     'what comes next (%(default)s)')
    top.add_argument('--shell', action='store_true',
                     help='run a shell in the checkout, not the tests')
    return top


def main(argv: list[str]) -> int:
    """Run the tests.

    :param argv: arguments
    :returns: the exit code
    """
    options = parser().parse_args(argv)
    if os.geteuid() != 0:
        print('debian-rig: run this as root', file=sys.stderr)
        return 1
    # An exception ends what runs in the tree.
    signal.signal(signal.SIGTERM, _exit)
    try:
        command = (['sh', '-i'] if options.shell else
                   ['tools/test', *(options.arguments or ['functional'])])
        return rig.Rig.default(options.suite).run(command)
    except errors.CloudError as exc:
        print(f'debian-rig: {exc}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _exit(number: int, _frame: types.FrameType | None) -> None:
    sys.exit(128 + number)
