# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext drain``: make it safe to go back to Nova's own driver."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import contextlib
import sys
import typing as ty

from nova_snapext.cmd.check import trial
from nova_snapext.cmd import exits
from nova_snapext.cmd import recover
from nova_snapext.cmd import standalone


DESCRIPTION = """\
Recover all that snapshots left on this host, and check that it is safe to use
Nova's own driver again. Run it as the user of nova-compute, which must be
stopped, or as root.
"""

EXAMPLES = """\
examples:
  nova-snapext drain --dry-run
  systemctl stop nova-compute && nova-snapext drain
"""


def run(options: argparse.Namespace) -> int:
    """Recover what is left on this host, or list it (--dry-run).

    :returns: the exit code
    """
    standalone.configure(options)
    if options.dry_run:
        return standalone.run(_dry_run, contextlib.nullcontext())
    from nova_snapext import journal
    return standalone.run(_drain, journal.locked())


def _dry_run(driver: ty.Any) -> bool:
    """Print all that is left on this host, or in use.

    :returns: whether nothing is
    """
    is_clean = _list(driver)
    if is_clean:
        print('Nothing of nova-snapext is left or in use on this host.')
    return is_clean


def _drain(driver: ty.Any) -> bool:
    """Recover all that is left, and print what could not be recovered.

    :returns: whether nothing is left
    """
    recover.recover_all(driver)
    recover.recover_trials(driver)
    elsewhere = set(_recover_unrecorded(driver))
    if _list(driver, elsewhere):
        print('This host has nothing of nova-snapext left. compute_driver can '
              'be set to libvirt.LibvirtDriver before nova-compute is '
              'started.')
        return True
    print('Do not start nova-compute with another compute_driver: some guests '
          'could start without their latest data. Remove the cause of each '
          'error, and run this command again.', file=sys.stderr)
    return False


def _recover_unrecorded(driver: ty.Any) -> Iterator[str]:
    """Merge the overlays that the journal does not record.

    :returns: uuids of the instances that are on other hosts
    """
    from nova_snapext import conf
    from nova_snapext import exception
    from nova_snapext import journal
    from nova_snapext import plan as planning
    from nova_snapext.recovery import leftovers
    from nova_snapext.recovery import recover as recovery
    uuids = {leftover.instance_uuid for leftover in leftovers.find(driver)
             if leftover.instance_uuid is not None}
    recorded = {entry.instance_uuid for entry in journal.entries()}
    for uuid in sorted(uuids - recorded):
        instance = recovery.get_instance(uuid, uuid)
        if isinstance(instance, planning.UnknownInstance):
            print(f'Nova has no instance {uuid}, or does not answer: nothing '
                  f'of it is touched.', file=sys.stderr)
        elif instance.host not in (None, conf.CONF.host):
            print(f'Instance {uuid} is on host {instance.host}: run this '
                  f'command there.')
            yield uuid
        else:
            print(f'instance {uuid}: an overlay that is not in the journal')
            try:
                recovery.ensure_recovered(driver, None, instance)
                print('    cleaned up')
            except exception.NotRecovered as error:
                print(error, file=sys.stderr)


def _list(driver: ty.Any, elsewhere: ty.Collection[str] = ()) -> bool:
    """Print all that is left on this host.

    :param elsewhere: uuids of the instances that are on other hosts
    :returns: whether nothing is on this host. An image in Glance can wait
        for its deletion anywhere.
    """
    from nova_snapext.recovery import leftovers
    left = [leftover for leftover in leftovers.find(driver)
            if leftover.instance_uuid not in elsewhere]
    left += [leftovers.Leftover(
        f'{one["name"]} was left by an interrupted "nova-snapext check '
        f'--trial".', 'Repeat that command, which removes it.',
        is_on_host=not one['name'].startswith(trial.IMAGE))
        for one in trial.left()]
    for leftover in left:
        print(standalone.printable(str(leftover)))
    return not any(leftover.is_on_host for leftover in left)


def add_to(commands: ty.Any) -> None:
    """Add this command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        'drain',
        help='recover all that snapshots left on this host, before an '
             'upgrade or another driver',
        description=DESCRIPTION,
        epilog=f'{EXAMPLES}\n{exits.TEXT}',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--dry-run', action='store_true',
        help='only list what is left or in use; nova-compute may run')
    standalone.add_options(parser)
    parser.set_defaults(run=run)
