# SPDX-License-Identifier: Apache-2.0
"""The checks of ``nova-snapext-status upgrade check``.

:mod:`nova_snapext.cmd.upgrade` imports this module: it needs packages that are
missing where Nova is not installed.
"""

from __future__ import annotations

import typing as ty

from oslo_upgradecheck import upgradecheck

from nova_snapext.cmd.check import configuration
from nova_snapext.cmd.check import installation
from nova_snapext.cmd.check import item
from nova_snapext.cmd import exits
from nova_snapext.cmd import standalone
from nova_snapext.cmd import status

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
            standalone.check_values(self._host.source)
        except exits.CommandError as error:
            return upgradecheck.Result(upgradecheck.Code.FAILURE, str(error))
        try:
            standalone.become_owner_of_state(
                standalone.state_path(self._host.source))
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
