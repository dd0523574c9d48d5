# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext-status upgrade check``, by oslo.upgradecheck.

Operators and deployment tools expect a command of this form from each project
of OpenStack. It checks what an upgrade can break, on this host, and has the
exit codes of oslo.upgradecheck.
"""

from __future__ import annotations

from collections.abc import Sequence
import sys
import typing as ty
import warnings

from oslo_config import cfg
from oslo_upgradecheck import upgradecheck

from nova_snapext.cmd.check import configuration
from nova_snapext.cmd.check import installation
from nova_snapext.cmd.check import item
from nova_snapext.cmd import compute_config
from nova_snapext.cmd import exits
from nova_snapext.cmd import standalone
from nova_snapext.cmd import status
from nova_snapext import compat

# oslo.upgradecheck's code for an error: see run() of its upgradecheck.py.
ERROR = 255

CODES = {item.Status.OK: upgradecheck.Code.SUCCESS,
         item.Status.WARNING: upgradecheck.Code.WARNING,
         item.Status.UNKNOWN: upgradecheck.Code.WARNING,
         item.Status.FAILED: upgradecheck.Code.FAILURE}


class UpgradeCommands(upgradecheck.UpgradeCommands):
    """The checks of an upgrade. Nothing is changed.

    :ivar options: of the command line
    """

    def __init__(self, options: ty.Any):
        super().__init__()
        self.options = options
        self._host = item.Host(options)

    def _of(self, *checks: item.Check) -> upgradecheck.Result:
        """Return the worst that some checks have found, as one result."""
        found = [one for check in checks for one in check(self._host)]
        order = [*item.Status]
        worst = max((one.status for one in found), key=order.index)
        details = ' '.join(
            f'{one.text} {one.remedy}'.strip() for one in found
            if one.status is worst and worst is not item.Status.OK)
        return upgradecheck.Result(CODES[worst], details or None)

    def packages(self) -> upgradecheck.Result:
        """Check that this version supports the installed Nova."""
        return self._of(installation.nova, installation.binding,
                        installation.packages)

    def options_(self) -> upgradecheck.Result:
        """Check that this version knows all options that are set."""
        if self._host.source is None:
            return self._of(configuration.files)
        return self._of(configuration.options)

    def journal(self) -> upgradecheck.Result:
        """Check that this version can recover what is in the journal."""
        from nova_snapext import exception
        if self._host.source is None:
            return upgradecheck.Result(
                upgradecheck.Code.WARNING, 'The journal was not read, for '
                                           'want of a configuration.')
        try:
            standalone.become_owner_of_state(standalone.state_path())
            found = status.collect()
        except exits.CommandError as error:
            return upgradecheck.Result(upgradecheck.Code.WARNING, str(error))
        except exception.JournalFailed as error:
            return upgradecheck.Result(upgradecheck.Code.FAILURE, str(error))
        if found['unusable'] or found['set_aside']:
            return upgradecheck.Result(
                upgradecheck.Code.FAILURE,
                'Files of the journal can\'t be used: see "nova-snapext '
                'status". Recover their instances with the version that '
                'wrote them.')
        if found['outstanding']:
            return upgradecheck.Result(
                upgradecheck.Code.WARNING,
                'Interrupted snapshots wait to be recovered: see '
                '"nova-snapext status". Run "nova-snapext drain" first.')
        return upgradecheck.Result(upgradecheck.Code.SUCCESS)

    _upgrade_checks = (('Packages', packages),
                       ('Options', options_),
                       ('Journal', journal))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the upgrade check.

    :param arguments: None: those of the process
    :returns: oslo.upgradecheck's exit code: 0 success, 1 warning, 2 failure,
        255 an error
    """
    if not sys.warnoptions:
        warnings.simplefilter('ignore')
    import argparse
    import logging
    logging.disable()
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A registry of its own for the command line: Nova's is parsed as
    # nova-compute's later. These options are oslo.config's own.
    conf = cfg.ConfigOpts()
    options = argparse.Namespace(config_file=[], config_dir=[], debug=False)
    commands = UpgradeCommands(options)
    upgradecheck.register_cli_options(conf, commands)
    try:
        conf(args=words, project='nova-snapext', prog='nova-snapext-status',
             default_config_files=[], default_config_dirs=[])
    except (cfg.Error, ValueError, OSError) as error:
        print(f'Nova\'s configuration can\'t be read: '
              f'{compute_config.safe_text(error)}. Correct the file.',
              file=sys.stderr)
        return ERROR
    upgradecheck.CONF = conf
    options.config_file = conf.config_file or []
    options.config_dir = conf.config_dir or []
    compute_config.adopt_environment(None)
    try:
        compat.use_native_threads()
        # Root reads files that Nova's user may not.
        [*configuration.files(commands._host)]
    except ImportError:
        pass  # packages() reports it
    return upgradecheck.run(conf)


def console() -> ty.NoReturn:
    """Run the upgrade check, and end the process."""
    standalone.end(main())
