# SPDX-License-Identifier: Apache-2.0
"""The command ``nova-snapext`` for operators."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys

from nova_snapext.cmd import check
from nova_snapext.cmd import drain
from nova_snapext.cmd import recover
from nova_snapext.cmd import status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    :param arguments: None: those of the process
    :returns: the exit code
    """
    parser = argparse.ArgumentParser(
        prog='nova-snapext',
        description='Snapshots for Nova\'s libvirt driver, streamed to '
                    'Glance.')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    check.add_to(commands)
    recover.add_to(commands)
    status.add_to(commands)
    drain.add_to(commands)
    options = parser.parse_args(arguments)
    code: int = options.run(options)
    return code


if __name__ == '__main__':
    sys.exit(main())
