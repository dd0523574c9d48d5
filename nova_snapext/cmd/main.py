# SPDX-License-Identifier: Apache-2.0
"""The command ``nova-snapext`` for operators."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import contextlib
import importlib.metadata
import os
import sys
import traceback
import typing as ty
import warnings

from nova_snapext.cmd.check import command as check
from nova_snapext.cmd import compute_config
from nova_snapext.cmd import drain
from nova_snapext.cmd import exits
from nova_snapext.cmd import recover
from nova_snapext.cmd import standalone
from nova_snapext.cmd import status

DESCRIPTION = """\
Look after the snapshots of one compute host. Nova takes them; this command
checks whether it can, tells what runs and what was left behind, and cleans up
while nova-compute is stopped.
"""

EXAMPLES = """\
examples:
  nova-snapext check               can Nova take snapshots on this host?
  nova-snapext check --trial       try it on a guest of its own
  nova-snapext status              what runs, and what waits to be cleaned up
  nova-snapext recover --dry-run   what would be cleaned up
  nova-snapext recover             clean up; nova-compute is stopped
  nova-snapext drain               before an upgrade, or another driver
"""

# The wheel and the Debian package have no manual page.
MORE = """\
more: the page nova-snapext of the documentation, which is
      doc/source/cli/nova-snapext.rst in the source archive
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    :param arguments: None: those of the process
    :returns: the exit code
    """
    if not sys.warnoptions:
        # They are for the developers of other packages.
        warnings.simplefilter('ignore')
    try:
        options = _parse(arguments)
    except OSError as error:
        return _output_failed(error)
    try:
        code: int = options.run(options)
    except exits.CommandError as error:
        _complain(str(error))
    except BrokenPipeError as error:
        return _output_failed(error)
    except KeyboardInterrupt:
        _complain('Interrupted.')
        return exits.INTERRUPTED
    except ImportError as error:
        _explain(options, f'{error}. "nova-snapext check" tells what is '
                          f'missing.')
    except Exception as error:
        if compute_config.is_option_error(error):
            _explain(options, f'An option of Nova can\'t be used: '
                              f'{compute_config.option_error_text(error)}. '
                              f'Correct it.')
            return exits.NOT_DONE
        # Anything that no command expects is a mistake of this package.
        _explain(options, f'{type(error).__name__}: {error}. "nova-snapext '
                          f'--debug" shows more.')
    else:
        return _flushed(code)
    return exits.NOT_DONE


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options.

    :raises SystemExit: help was printed, or the command line is wrong
    :raises OSError: help could not be printed
    """
    try:
        return _parser().parse_args(arguments)
    except SystemExit as error:
        if error.code == exits.CLEAN:
            sys.stdout.flush()
        raise


def _flushed(code: int) -> int:
    """Return the exit code of a command, after an error of its output."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return _output_failed(error)
    return code


def _output_failed(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):
        # The reader, such as head(1), has enough. Python would complain
        # again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        _complain(f'nova-snapext: The output can\'t be written: {error}.')
    return exits.NOT_DONE


def _explain(options: argparse.Namespace, text: str) -> None:
    if options.debug:
        traceback.print_exc()
    _complain(f'nova-snapext: {text}')


def _complain(text: str) -> None:
    # The exit code says it, too.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='nova-snapext', description=DESCRIPTION,
        epilog=f'{EXAMPLES}\n{exits.TEXT}\n{MORE}',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--version', action=_Version, nargs=0,
                        help='print the versions of nova-snapext and Nova')
    parser.add_argument('--debug', action='store_true',
                        help='show warnings of other packages, Nova\'s log, '
                             'and where an error comes from')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    for command in (check, status, recover, drain):
        command.add_to(commands)
    return parser


class _Version(argparse.Action):

    def __call__(self, parser: argparse.ArgumentParser,
                 *_arguments: ty.Any) -> ty.NoReturn:
        versions = []
        for name in ('nova-snapext', 'nova'):
            try:
                versions.append(f'{name} {importlib.metadata.version(name)}')
            except importlib.metadata.PackageNotFoundError:
                versions.append(f'{name} is not installed')
        print(f'{", ".join(versions)} (Python '
              f'{sys.version.split(maxsplit=1)[0]}, {sys.executable})')
        parser.exit(exits.CLEAN)


def console() -> ty.NoReturn:
    """Run a command, and end the process."""
    standalone.begin()
    standalone.end(main())


if __name__ == '__main__':
    console()
