# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext status``: what runs on this host, and what was left.

What waits to be cleaned up is in the journal. What runs is there, too, and
tells more by :mod:`nova_snapext.snapshot.published`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import json
import logging
import os
import typing as ty

from nova_snapext.cmd.check import trial
from nova_snapext.cmd import exits
from nova_snapext.cmd import prometheus
from nova_snapext.cmd import standalone

#: Version of the JSON that is printed.
VERSION = 1

RUNNING, RECOVERING, WAITING = 'running', 'recovering', 'waiting'

# What a running snapshot tells by itself.
PUBLISHED = ('phase', 'frozen_at', 'sent', 'size', 'rate', 'seconds_left')

COLUMNS = ('INSTANCE', 'STRATEGY', 'PHASE', 'SENT', 'OF', 'RATE', 'LEFT',
           'ON HOST')

UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB')


def run(options: argparse.Namespace) -> int:
    """Print the status, and change nothing. No other service is needed.

    :returns: the exit code
    """
    # A warning about the configuration is in nova-compute's log.
    logging.disable(logging.NOTSET if options.debug else logging.CRITICAL)
    try:
        status = _status(options)
        printed = FORMATS[options.format](status)
    except Exception:
        if options.format == 'prometheus':
            print(prometheus.failure(), end='')
        raise
    finally:
        logging.disable(logging.NOTSET)
    print(printed, end='')
    return exits.FOUND if status['outstanding'] else exits.CLEAN


def _status(options: argparse.Namespace) -> dict[str, ty.Any]:
    standalone.read_configuration(options)
    from nova_snapext import exception
    try:
        return collect()
    except exception.JournalFailed as error:
        raise exits.CommandError(str(error)) from error


def collect() -> dict[str, ty.Any]:
    """Return what runs and what was left, in types that JSON has.

    :raises JournalFailed: the journal can't be read
    """
    from nova_snapext import conf
    from nova_snapext import journal
    from nova_snapext.snapshot import published
    # A snapshot that ends in between is shown as running once more.
    telling = {snapshot.instance_uuid: snapshot
               for snapshot in published.running()}
    runs = journal.is_locked_by_another()
    since = journal.locked_since() if runs else None
    snapshots = [_snapshot(entry, since, telling)
                 for entry in journal.entries()]
    known = {snapshot['instance_uuid'] for snapshot in snapshots
             if snapshot['state'] == RUNNING}
    snapshots += [_only_published(snapshot) for uuid, snapshot
                  in telling.items() if uuid not in known]
    in_use = {snapshot['image_id'] for snapshot in snapshots
              if snapshot['state'] == RUNNING}
    images = [_image(image) for image in journal.images()
              if image.image_id not in in_use and not _is_new(image, since)]
    unusable = [_unusable(file) for file in journal.unusable()]
    set_aside = journal.set_aside_files()
    trials = trial.left()
    return {
        'version': VERSION,
        'host': conf.CONF.host,
        'journal_directory': conf.CONF.snapext.journal_directory,
        'locked': runs,
        'outstanding': bool(images or unusable or set_aside or trials or any(
            snapshot['state'] != RUNNING for snapshot in snapshots)),
        'snapshots': snapshots, 'images': images, 'unusable': unusable,
        'set_aside': set_aside, 'trials': trials}


def _snapshot(entry: ty.Any, since: str | None,
              telling: dict[str, ty.Any]) -> dict[str, ty.Any]:
    """Return what is known of a snapshot in the journal.

    :param since: when nova-compute began to use the journal; None if it does
        not run
    :param telling: what running snapshots publish, by the instance's uuid
    """
    from nova_snapext.resources import overlay
    if since is None or entry.problem is not None or entry.is_set_apart:
        state = WAITING
    else:
        state = RUNNING if entry.began_at >= since else RECOVERING
    told = telling.get(entry.instance_uuid) if state == RUNNING else None
    return {
        'instance_uuid': entry.instance_uuid,
        'instance_name': entry.instance_name,
        'image_id': entry.image_id, 'strategy': entry.strategy,
        'began_at': entry.began_at, 'state': state, 'problem': entry.problem,
        'resources': [record.kind for record in entry.records],
        'blocks_start': any(
            record.blocks_start for record in entry.records),
        'blocks_snapshot': not entry.is_set_apart and any(
            record.blocks_snapshot for record in entry.records),
        'guest_paused': any(map(overlay.is_guest_paused, entry.records)),
        **_progress(entry.instance_uuid, told)}


def _only_published(told: ty.Any) -> dict[str, ty.Any]:
    """Return a snapshot that has nothing in the journal: it only begins."""
    return {
        'instance_uuid': told.instance_uuid,
        'instance_name': told.instance_name,
        'image_id': told.image_id, 'strategy': told.strategy,
        'began_at': told.began_at, 'state': RUNNING, 'problem': None,
        'resources': [], 'blocks_start': False, 'blocks_snapshot': False,
        'guest_paused': False,
        **_progress(told.instance_uuid, told)}


def _progress(instance_uuid: str, told: ty.Any) -> dict[str, ty.Any]:
    """Return how far a snapshot is, and what it uses on this host.

    :param told: what the snapshot publishes; None if it does not run
    """
    return {**{name: getattr(told, name, None) for name in PUBLISHED},
            'on_host': _on_host(instance_uuid)}


def _on_host(instance_uuid: str) -> list[dict[str, ty.Any]]:
    """Return the files that keep what the guest writes during a snapshot.

    :returns: for each one its kind, path, and bytes on the disk
    """
    from nova_snapext import conf
    from nova_snapext import plan as planning
    from nova_snapext.resources import work_directory
    scratches = [os.path.join(path, work_directory.SCRATCH)
                 for path in work_directory.find()
                 if f'/{work_directory.GUEST_PREFIX}{instance_uuid}/' in path]
    overlay = os.path.join(conf.CONF.instances_path, instance_uuid,
                           planning.OVERLAY_NAME)
    found = []
    for kind, path in (*(('scratch', path) for path in scratches),
                       ('overlay', overlay)):
        with contextlib.suppress(OSError):
            # Blocks of 512 bytes: stat(2).
            found.append({'kind': kind, 'path': path,
                          'bytes': os.stat(path).st_blocks * 512})
    return found


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
    running = [snapshot for snapshot in status['snapshots']
               if snapshot['state'] == RUNNING]
    if running:
        yield ''
        yield from _table([COLUMNS, *map(_row, running)])
    for snapshot in status['snapshots']:
        if snapshot['state'] != RUNNING:
            yield from _left_lines(snapshot, status['locked'])
    for image in status['images']:
        yield ''
        yield (f'image {image["image_id"]} of instance '
               f'{image["instance_uuid"]}: incomplete, waits to be deleted')
        yield f'    {image["reason"] or "not tried yet"}'
    for file in status['unusable']:
        instance = file['instance_uuid']
        yield ''
        yield (f'{file["path"]}: can\'t be used'
               f'{f", blocks instance {instance}" if instance else ""}')
        yield f'    {file["reason"]}'
    for path in status['set_aside']:
        yield ''
        yield (f'{path}: could not be read, and was set aside. Check the '
               f'guest, then remove the file.')
    for guest in status['trials']:
        yield ''
        yield (f'{guest["name"]}: left by an interrupted "nova-snapext check '
               f'--trial". Repeat that command, which removes it.')
    if not (status['outstanding'] or status['snapshots']):
        yield 'Nothing runs, and nothing is outstanding.'


def _row(snapshot: dict[str, ty.Any]) -> tuple[str, ...]:
    on_host = ', '.join(f'{file["kind"]} {_size(file["bytes"])}'
                        for file in snapshot['on_host'])
    rate, left = snapshot['rate'], snapshot['seconds_left']
    return (snapshot['instance_uuid'], snapshot['strategy'] or '-',
            snapshot['phase'] or '-', _size(snapshot['sent']),
            _size(snapshot['size']),
            '-' if rate is None else f'{_size(rate)}/s',
            '-' if left is None else _duration(left), on_host or '-')


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield '  '.join(cell.ljust(width) for cell, width in zip(
            row, widths, strict=True)).rstrip()


def _size(count: int | None) -> str:
    """Return a number of bytes for people."""
    if count is None:
        return '-'
    size, unit = float(count), 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f'{size:.0f} {UNITS[unit]}' if unit < 2 else (
        f'{size:.1f} {UNITS[unit]}')


def _duration(seconds: int) -> str:
    """Return a duration for people."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{rest:02}'


def _left_lines(snapshot: dict[str, ty.Any], locked: bool) -> Iterator[str]:
    yield ''
    yield (f'instance {snapshot["instance_uuid"]} '
           f'({snapshot["instance_name"]}): snapshot {snapshot["state"]}, '
           f'strategy {snapshot["strategy"]}, image {snapshot["image_id"]}, '
           f'begun {snapshot["began_at"]}Z')
    if snapshot['resources']:
        yield f'    resources: {", ".join(snapshot["resources"])}'
    for file in snapshot['on_host']:
        yield f'    {file["kind"]} {file["path"]}: {_size(file["bytes"])}'
    if snapshot['guest_paused']:
        yield '    the guest is paused until this is cleaned up'
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


FORMATS: dict[str, Callable[[dict[str, ty.Any]], str]] = {
    'text': lambda status: standalone.printable(
        '\n'.join([*_lines(status), ''])),
    'json': lambda status: json.dumps(status, indent=2) + '\n',
    'prometheus': prometheus.text}

DESCRIPTION = """\
List the snapshots of this host that run, and what waits to be cleaned up, and
why. It changes nothing, and nova-compute may run. Run it as the user of
nova-compute, or as root.
"""

EXAMPLES = """\
examples:
  nova-snapext status
  nova-snapext status --format json | jq '.snapshots[] | .seconds_left'
  nova-snapext status --format prometheus > nova_snapext.prom.new
"""


def add_to(commands: ty.Any) -> None:
    """Add this command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        'status',
        help='list the snapshots of this host that run, and what waits to be '
             'cleaned up',
        description=DESCRIPTION,
        epilog=f'{EXAMPLES}\n{exits.TEXT}',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--format', choices=(*FORMATS,), default='text',
        help='output for people (default), for scripts, or for '
             'node_exporter\'s textfile collector')
    standalone.add_options(parser)
    parser.set_defaults(run=run)
