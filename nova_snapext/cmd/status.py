# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext status``: list what the journal of this host contains."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import json
import sys
import typing as ty

from nova_snapext.cmd import standalone

RUNNING, RECOVERING, WAITING = 'running', 'recovering', 'waiting'


def run(options: argparse.Namespace) -> int:
    """Print the status, and change nothing. No other service is needed.

    :returns: the exit code: 0 if nothing waits, else 1
    """
    standalone.configure(options)
    from nova_snapext import exception
    try:
        status = collect()
    except exception.JournalFailed as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(status, indent=2))
    else:
        print(standalone.printable('\n'.join(_lines(status))))
    return int(status['outstanding'])


def collect() -> dict[str, ty.Any]:
    """Return what the journal contains, in types that JSON has.

    :raises JournalFailed: the journal can't be read
    """
    from nova_snapext import conf
    from nova_snapext import journal
    runs = journal.is_locked_by_another()
    since = journal.locked_since() if runs else None
    snapshots = [_snapshot(entry, since) for entry in journal.entries()]
    in_use = {snapshot['image_id'] for snapshot in snapshots
              if snapshot['state'] == RUNNING}
    images = [_image(image) for image in journal.images()
              if image.image_id not in in_use and not _is_new(image, since)]
    unusable = [_unusable(file) for file in journal.unusable()]
    set_aside = journal.set_aside_files()
    return {
        'host': conf.CONF.host,
        'journal_directory': conf.CONF.snapext.journal_directory,
        'locked': runs,
        'outstanding': bool(images or unusable or set_aside or any(
            snapshot['state'] != RUNNING for snapshot in snapshots)),
        'snapshots': snapshots, 'images': images, 'unusable': unusable,
        'set_aside': set_aside}


def _snapshot(entry: ty.Any, since: str | None) -> dict[str, ty.Any]:
    """Return what is known of a snapshot.

    :param since: when nova-compute began to use the journal; None if it does
        not run
    """
    if since is None or entry.problem is not None or entry.is_set_apart:
        state = WAITING
    else:
        state = RUNNING if entry.began_at >= since else RECOVERING
    return {
        'instance_uuid': entry.instance_uuid,
        'instance_name': entry.instance_name,
        'image_id': entry.image_id, 'strategy': entry.strategy,
        'began_at': entry.began_at, 'state': state, 'problem': entry.problem,
        'resources': [record.kind for record in entry.records],
        'blocks_start': any(
            record.blocks_start for record in entry.records),
        'blocks_snapshot': not entry.is_set_apart and any(
            record.blocks_snapshot for record in entry.records)}


def _is_new(image: ty.Any, since: str | None) -> bool:
    """Return whether an image is of a snapshot that has only just begun.

    Its entry was not there yet when the entries were read.
    """
    return (since is not None and image.reason is None and
            image.began_at >= since)


def _image(image: ty.Any) -> dict[str, ty.Any]:
    return {'image_id': image.image_id, 'instance_uuid': image.instance_uuid,
            'strategy': image.strategy, 'began_at': image.began_at,
            'reason': image.reason}


def _unusable(file: ty.Any) -> dict[str, ty.Any]:
    return {'path': file.path, 'instance_uuid': file.instance_uuid,
            'reason': str(file.problem)}


def _lines(status: dict[str, ty.Any]) -> Iterator[str]:
    """Return the lines of the text for people."""
    user = ('in use by nova-compute (or nova-snapext recover or drain)'
            if status['locked'] else 'nova-compute does not run')
    yield (f'Host {status["host"]}, journal {status["journal_directory"]}: '
           f'{user}.')
    for snapshot in status['snapshots']:
        yield from _snapshot_lines(snapshot, status['locked'])
    for image in status['images']:
        yield (f'image {image["image_id"]} of instance '
               f'{image["instance_uuid"]}: incomplete, waits to be deleted')
        yield f'    {image["reason"] or "not tried yet"}'
    for file in status['unusable']:
        instance = file['instance_uuid']
        yield (f'{file["path"]}: can\'t be used'
               f'{f", blocks instance {instance}" if instance else ""}')
        yield f'    {file["reason"]}'
    for path in status['set_aside']:
        yield (f'{path}: could not be read, and was set aside. Check the '
               f'guest, then remove the file.')
    if not (status['outstanding'] or status['snapshots']):
        yield 'Nothing is outstanding.'


def _snapshot_lines(snapshot: dict[str, ty.Any],
                    locked: bool) -> Iterator[str]:
    yield (f'instance {snapshot["instance_uuid"]} '
           f'({snapshot["instance_name"]}): snapshot {snapshot["state"]}, '
           f'strategy {snapshot["strategy"]}, image {snapshot["image_id"]}, '
           f'begun {snapshot["began_at"]}Z')
    if snapshot['resources']:
        yield f'    resources: {", ".join(snapshot["resources"])}'
    if snapshot['state'] == RECOVERING:
        yield '    interrupted, and cleaned up now'
    if snapshot['state'] == WAITING:
        yield f'    {snapshot["problem"] or "interrupted"}'
        refused = [name for name, is_refused in (
            ('start and move', snapshot['blocks_start']),
            ('snapshot', snapshot['blocks_snapshot'])) if is_refused]
        yield f'    until then refused: {", ".join(refused) or "nothing"}'
        if not locked:
            yield '    cleaned up when nova-compute starts'


def add_to(commands: ty.Any) -> None:
    """Add this command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        'status',
        help='list the snapshots of this host that run, and what waits to be '
             'cleaned up; this changes nothing, and nova-compute may run')
    parser.add_argument(
        '--json', action='store_true', help='print JSON, for scripts')
    standalone.add_options(parser)
    parser.set_defaults(run=run)
