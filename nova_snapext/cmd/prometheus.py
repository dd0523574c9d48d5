# SPDX-License-Identifier: Apache-2.0
"""The status in Prometheus's text format, for node_exporter.

https://prometheus.io/docs/instrumenting/exposition_formats/ has the format,
https://prometheus.io/docs/practices/naming/ the names.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
import datetime
import typing as ty

PREFIX = 'nova_snapext'

Sample = tuple[dict[str, str], float | None]


def text(status: dict[str, ty.Any]) -> str:
    """Return the status as metrics. All of them are gauges.

    :param status: what ``nova-snapext status`` collects
    """
    return ''.join(f'{line}\n' for line in _lines(status))


def failure() -> str:
    """Return the metrics of a status that could not be found out."""
    return ''.join(f'{line}\n' for line in _success(0))


def _success(value: int) -> Iterator[str]:
    return _metric('status_success', 'Whether the status could be found out.',
                   [({}, value)])


def _lines(status: dict[str, ty.Any]) -> Iterator[str]:
    snapshots = status['snapshots']
    running = [one for one in snapshots if one['state'] == 'running']
    left = [one for one in snapshots if one['state'] != 'running']
    yield from _success(1)
    yield from _metric(
        'journal_locked', 'Whether nova-compute, or a command that cleans '
        'up, uses the journal.', [({}, int(status['locked']))])
    yield from _metric('snapshots_running', 'Snapshots that run.',
                       [({}, len(running))])
    yield from _metric(
        'snapshot_info', 'What a running snapshot is, and does.',
        [({**_instance(one), 'image': one['image_id'],
           'strategy': one['strategy'] or '', 'phase': one['phase'] or ''},
          1) for one in running])
    for name, text_, values in (
        ('snapshot_begin_timestamp_seconds', 'When it began.',
         ((one, _timestamp(one['began_at'])) for one in running)),
        ('snapshot_sent_bytes', 'Bytes of the image that are uploaded.',
         ((one, one['sent']) for one in running)),
        ('snapshot_size_bytes', 'Bytes of the whole image, as an estimate.',
         ((one, one['size']) for one in running)),
        ('snapshot_rate_bytes_per_second', 'How fast it is uploaded.',
         ((one, one['rate']) for one in running)),
        ('snapshot_remaining_seconds', 'How long the rest takes like this.',
         ((one, one['seconds_left']) for one in running)),
    ):
        yield from _metric(name, text_, (
            (_instance(one), value) for one, value in values))
    yield from _metric(
        'snapshot_host_bytes', 'Space on this host that a snapshot uses.',
        (({**_instance(one), 'kind': file['kind']}, file['bytes'])
         for one in snapshots for file in _by_kind(one['on_host'])))
    yield from _metric(
        'interrupted_snapshots', 'Snapshots that were interrupted, and are '
        'not cleaned up.',
        [({'state': state}, sum(one['state'] == state for one in left))
         for state in ('recovering', 'waiting')])
    yield from _metric(
        'interrupted_snapshot_begin_timestamp_seconds',
        'When an interrupted snapshot began.',
        (({**_instance(one), 'image': one['image_id'],
           'state': one['state']}, _timestamp(one['began_at']))
         for one in left))
    for name, text_, key in (
        ('incomplete_images', 'Images that wait to be deleted.', 'images'),
        ('unusable_journal_files', 'Files of the journal that can\'t be '
         'used.', 'unusable'),
        ('set_aside_journal_files', 'Files of the journal that could not be '
         'read.', 'set_aside'),
        ('trial_guests_left', 'Guests, and images, that an interrupted check '
         '--trial has left.', 'trials'),
    ):
        yield from _metric(name, text_, [({}, len(status[key]))])


def _by_kind(files: list[dict[str, ty.Any]]) -> list[dict[str, ty.Any]]:
    """Add up the files of one kind: two samples can't have equal labels."""
    return [{'kind': kind, 'bytes': sum(file['bytes'] for file in files
                                        if file['kind'] == kind)}
            for kind in sorted({file['kind'] for file in files})]


def _instance(snapshot: dict[str, ty.Any]) -> dict[str, str]:
    # Not "instance", which Prometheus sets itself: the scraped host.
    return {'instance_uuid': snapshot['instance_uuid']}


def _timestamp(text_: str) -> float | None:
    """Return seconds since 1970 of a time in UTC, in ISO 8601.

    :returns: None if it is nonsense, as what is in the journal may be
    """
    try:
        return datetime.datetime.fromisoformat(text_).replace(
            tzinfo=datetime.UTC).timestamp()
    except ValueError:
        return None


def _metric(name: str, help_: str,
            samples: Iterable[Sample]) -> Iterator[str]:
    """Return the lines of one metric; those without a value are left out.

    Prometheus refuses two samples with equal labels. Two snapshots of one
    instance, one of them set apart, have such samples, of the same files.
    """
    known = {tuple(labels.items()): value for labels, value in samples
             if value is not None}
    if not known:
        return
    yield f'# HELP {PREFIX}_{name} {help_}'
    yield f'# TYPE {PREFIX}_{name} gauge'
    for labels, value in known.items():
        listed = ','.join(f'{label}="{_escaped(content)}"'
                          for label, content in labels)
        yield f'{PREFIX}_{name}{f"{{{listed}}}" if listed else ""} {value}'


def _escaped(content: str) -> str:
    # What is in the journal may be nonsense, and is not valid UTF-8 then.
    safe = content.encode(errors='backslashreplace').decode()
    return safe.replace('\\', '\\\\').replace('"', '\\"').replace('\n', '\\n')
