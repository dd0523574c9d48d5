# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext recover``: clean up while nova-compute is stopped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import os
import sys
import typing as ty

from nova_snapext.cmd.check import item
from nova_snapext.cmd.check import trial
from nova_snapext.cmd import exits
from nova_snapext.cmd import standalone


DESCRIPTION = """\
Clean up after interrupted snapshots while nova-compute is stopped. Run it as
the user of nova-compute, or as root.
"""

EXAMPLES = """\
examples:
  nova-snapext recover --dry-run
  systemctl stop nova-compute && nova-snapext recover
  nova-snapext recover 2a1c9b0e-5b77-4bd7-9d39-6a1f1e9b7c11
"""


def run(options: argparse.Namespace) -> int:
    """Recover interrupted snapshots, or list them (--dry-run).

    :returns: the exit code
    """
    standalone.configure(options)
    from nova_snapext import exception
    from nova_snapext import journal
    if not options.dry_run:
        return standalone.run(
            lambda driver: all([recover_all(driver, options.instance),
                                bool(options.instance) or
                                recover_trials(driver)]),
            journal.locked())
    try:
        trials = [] if options.instance else trial.left()
        for one in trials:
            print(f'{one["name"]}, which "nova-snapext check --trial" has '
                  f'left')
        is_clean = recover_all(None, options.instance) and not trials
        return exits.CLEAN if is_clean else exits.FOUND
    except exception.JournalFailed as error:
        raise exits.CommandError(str(error)) from error


def recover_trials(driver: ty.Any) -> bool:
    """Remove what an interrupted ``nova-snapext check --trial`` has left.

    :returns: whether nothing is left
    """
    from nova_snapext import exception
    if not os.path.isdir(trial.directory()) and not _trial_guests(driver):
        return True
    try:
        with trial.locked_journal():
            items = [*trial.recover(driver)]
    except exception.JournalLocked:
        return True  # it runs, and removes all itself
    for one in items:
        print(f'{one.text}')
    return not any(one.status is item.Status.FAILED for one in items)


def _trial_guests(driver: ty.Any) -> bool:
    """Return whether libvirt has guests of trials, or does not tell."""
    import libvirt

    from nova_snapext.resources import trial_guest
    try:
        return bool(trial_guest.TrialGuest.find(driver._host))
    except libvirt.libvirtError:
        return True


def recover_all(driver: ty.Any, instances: Sequence[str] = ()) -> bool:
    """Recover interrupted snapshots, and print what is done.

    :param driver: None: only list the snapshots, and change nothing
    :param instances: uuids; empty: all instances
    :returns: whether nothing is left
    """
    from nova_snapext import journal
    if driver is not None:
        journal.finish_writes()

    def is_wanted(file: ty.Any) -> bool:
        return not instances or file.instance_uuid in instances

    entries = [*filter(is_wanted, journal.entries())]
    images = [*filter(is_wanted, journal.images())]
    unusable = [*filter(is_wanted, journal.unusable())]
    found: list[ty.Any] = [*entries, *images, *unusable]
    missing = set(instances) - {file.instance_uuid for file in found}
    for instance in sorted(missing):
        print(f'The journal has no interrupted snapshot of instance '
              f'{instance}.', file=sys.stderr)
    if not (found or missing):
        print('There is nothing to clean up in the journal.')
    for file in unusable:
        print(standalone.printable(
            f'{file.path} is left alone: {file.problem}.'), file=sys.stderr)
    if driver is None and (entries or images) and (
            journal.is_locked_by_another()):
        print('The journal is in use by nova-compute (or nova-snapext recover '
              'or drain). These snapshots run now, or are cleaned up there.')
    # Each of them is done, whatever the others say.
    done = [not missing, not unusable,
            *[_recover(driver, entry) for entry in entries],
            *[_delete(driver, image) for image in images],
            driver is None or bool(instances) or _remove_from_ceph(driver)]
    return all(done)


def _remove_from_ceph(driver: ty.Any) -> bool:
    from nova_snapext import exception
    from nova_snapext.recovery import rbd_leftovers
    done = True
    images = set()
    try:
        for snapshot, unknown in rbd_leftovers.find(driver):
            print(f'{snapshot} in Ceph, which no journal has')
            if unknown:
                print(f'    {standalone.printable(unknown)}', file=sys.stderr)
                done = False
                continue
            try:
                rbd_leftovers.remove(snapshot)
                images.add(snapshot.image)
                print('    removed')
            except exception.CephError as error:
                print(f'    {error}', file=sys.stderr)
                done = False
    except exception.CephError as error:
        print(error, file=sys.stderr)
        done = False
    for image in images:
        try:
            rbd_leftovers.delete_disks_of_deleted(
                rbd_leftovers.instance_uuid(image))
        except exception.ReleaseFailed as error:
            print(error, file=sys.stderr)
            done = False
    return done


def _recover(driver: ty.Any, entry: ty.Any) -> bool:
    from nova_snapext import exception
    from nova_snapext.recovery import recover
    print(standalone.printable(recover.describe(entry)))
    if driver is None:
        return False
    try:
        recover.recover_entry(driver, entry)
    except exception.NotRecovered as error:
        print(error, file=sys.stderr)
        return False
    print('    cleaned up')
    return True


def _delete(driver: ty.Any, image: ty.Any) -> bool:
    from nova_snapext.recovery import recover
    print(standalone.printable(
        f'image {image.image_id} of instance {image.instance_uuid}, begun '
        f'{image.began_at}Z, is not complete'))
    if driver is None:
        return False
    if recover.recover_image(image):
        print('    deleted')
        return True
    print(standalone.printable(f'    not deleted: {image.reason}'),
          file=sys.stderr)
    return False


def add_to(commands: ty.Any) -> None:
    """Add this command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        'recover',
        help='clean up after interrupted snapshots while nova-compute is '
             'stopped',
        description=DESCRIPTION,
        epilog=f'{EXAMPLES}\n{exits.TEXT}',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--dry-run', action='store_true',
        help='only list the interrupted snapshots and what they left; this '
             'changes nothing, and nova-compute may run')
    standalone.add_options(parser)
    parser.add_argument(
        'instance', nargs='*', metavar='UUID',
        help='uuid of an instance; by default all instances')
    parser.set_defaults(run=run)
