# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext-status upgrade check``, by oslo.upgradecheck.

Operators and deployment tools expect a command of this form from each project
of OpenStack. It checks what an upgrade can break, on this host, and has the
exit codes of oslo.upgradecheck.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import logging
import sys
import typing as ty
import warnings

from nova_snapext.cmd.check import configuration
from nova_snapext.cmd.check import item
from nova_snapext.cmd import compute_config
from nova_snapext.cmd import exits
from nova_snapext.cmd import standalone
from nova_snapext import compat

# oslo.upgradecheck's code for an error: see run() of its upgradecheck.py.
ERROR = 255


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the upgrade check.

    :param arguments: None: those of the process
    :returns: oslo.upgradecheck's exit code: 0 success, 1 warning, 2 failure,
        255 an error
    """
    if not sys.warnoptions:
        warnings.simplefilter('ignore')
    logging.disable()
    try:
        from oslo_config import cfg
        from oslo_upgradecheck import upgradecheck

        from nova_snapext.cmd import upgrade_checks
    except ImportError as error:
        print(f'nova-snapext-status: {error}. "nova-snapext check" tells what '
              f'is missing.', file=sys.stderr)
        return ERROR
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A registry of its own for the command line: Nova's is parsed as
    # nova-compute's later. These options are oslo.config's own.
    conf = cfg.ConfigOpts()
    options = argparse.Namespace(config_file=[], config_dir=[], debug=False)
    commands = upgrade_checks.UpgradeCommands(options)
    upgradecheck.register_cli_options(conf, commands)
    named = _named(words)
    try:
        compute_config.check_files(named)
        conf(args=words, project='nova-snapext', prog='nova-snapext-status',
             default_config_files=[], default_config_dirs=[])
    except exits.CommandError as error:
        print(error, file=sys.stderr)
        return ERROR
    except (cfg.Error, ValueError, OSError) as error:
        print(compute_config.reading_error_text(error, named),
              file=sys.stderr)
        return ERROR
    upgradecheck.CONF = conf
    options.config_file = conf.config_file or []
    options.config_dir = conf.config_dir or []
    compute_config.adopt_environment(None)
    try:
        compat.use_native_threads()
        # Root reads files that Nova's user may not.
        for one in configuration.files(commands._host):
            if one.status is item.Status.FAILED:
                print(one.text, file=sys.stderr)
                return ERROR
    except ImportError:
        pass  # packages() reports it
    try:
        code: int = upgradecheck.run(conf)
        sys.stdout.flush()
    except OSError as error:
        print(f'nova-snapext-status: The output can\'t be written: {error}.',
              file=sys.stderr)
        return ERROR
    return code


def _named(words: Sequence[str]) -> compute_config.Source:
    """Return the files that a command line names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in compute_config.OPTIONS:
        parser.add_argument(option, action='append', default=[])
    named, _others = parser.parse_known_args(words)
    return compute_config.of_command_line(named)


def console() -> ty.NoReturn:
    """Run the upgrade check, and end the process."""
    standalone.begin()
    standalone.end(main())
