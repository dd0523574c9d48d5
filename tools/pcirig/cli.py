# SPDX-License-Identifier: Apache-2.0
"""The command line."""

import argparse
import os
import signal
import sys
import types

from devcloud import errors
from pcirig import rig

DESCRIPTION = """\
Run tests/pci on an emulated machine with an IOMMU and an SR-IOV card. All that
is made for it stays in /var/lib/snapext-pci-rig (or in $SNAPEXT_PCI_RIG_DIR),
so that the next run is quicker.
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog='pci-rig', description=DESCRIPTION)
    top.add_argument('filters', nargs='*', metavar='FILTER',
                     help="part or pattern of tests' names")
    top.add_argument('--timeout', type=float, default=rig.TIMEOUT,
                     metavar='SECONDS', help='how long the machine may run')
    top.add_argument('--shell', action='store_true',
                     help='a shell on the machine, in place of the tests')
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
