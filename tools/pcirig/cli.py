# SPDX-License-Identifier: Apache-2.0
"""The command line of tools/pci-rig."""

import argparse
import os
import signal
import sys
import types

from devcloud import errors
from pcirig import rig

DESCRIPTION = """\
Run tests/pci on an emulated machine with an IOMMU and an SR-IOV card. All its
files stay in /var/lib/snapext-pci-rig (or in $SNAPEXT_PCI_RIG_DIR), so that
the next run is faster.
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog='pci-rig', description=DESCRIPTION)
    top.add_argument('filters', nargs='*', metavar='FILTER',
                     help='part of the names of tests to run, or a pattern')
    top.add_argument('--timeout', type=float, default=rig.TIMEOUT,
                     metavar='SECONDS',
                     help='stop the machine after this time (%(default)s)')
    top.add_argument('--shell', action='store_true',
                     help='run a shell on the machine, not the tests')
    return top


def main(argv: list[str]) -> int:
    """Run the tests.

    :param argv: arguments
    :returns: the exit code
    """
    arguments = parser().parse_args(argv)
    if os.geteuid() != 0:
        print('pci-rig: run this as root', file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _exit)
    try:
        one = rig.Rig.default()
        if arguments.shell:
            return one.open_shell(arguments.timeout)
        return one.test(arguments.filters, arguments.timeout)
    except errors.CloudError as exc:
        print(f'pci-rig: {exc}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _exit(number: int, _frame: types.FrameType | None) -> None:
    sys.exit(128 + number)
