# SPDX-License-Identifier: Apache-2.0
"""The form of the journal's files, and a reader that trusts none of them.

A file may be damaged, edited, or of another version.
"""

from __future__ import annotations

import json
import math
import typing as ty

import jsonschema

from nova_snapext import conf
from nova_snapext import exception

CONF = conf.CONF

#: Version of the format of the files. A newer version reads this one, or
#: converts it.
VERSION = 1

# An entry has four levels, and what a resource records has up to four more.
# All that is read is also written, copied and logged, which recurses.
MAX_DEPTH = 20

# Characters of a reason that quotes the content of a file.
MAX_REASON = 300

Schema = dict[str, ty.Any]

#: JSON schemas of the values that resources record.
FLAG: Schema = {'type': 'boolean'}
INTEGER: Schema = {'type': 'integer'}
TEXT: Schema = {'type': 'string', 'pattern': r'\A[^\x00]*\Z'}
OPTIONAL_TEXT: Schema = {**TEXT, 'type': ['string', 'null']}
PATH: Schema = {'type': 'string', 'pattern': r'\A/[^\x00]*\Z'}
OBJECT: Schema = {'type': 'object'}
#: libvirt's note of the owner of a disk, or nothing: ownership.OwnerNote.
OWNER_LABEL: Schema = {
    'type': 'object',
    'properties': {
        'dac': {'type': 'string', 'pattern': r'\A\+\d+:\+\d+\Z'},
        'ref_dac': {'type': 'string', 'pattern': r'\A\d+\Z'},
        'timestamp_dac': {'type': 'string', 'pattern': r'\A\d+\Z'},
    },
    'additionalProperties': False,
}

_NAME = {'type': 'string', 'pattern': r'\A[^\x00-\x1f\x7f]+\Z'}
_UUID = {'type': 'string',
         'pattern': r'\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z'}
_TIME = {'type': 'string', 'pattern': r'\A\d{4}-\d\d-\d\dT[\d:.]+\Z'}


def object_of(**properties: Schema) -> Schema:
    """Return the schema of an object that has exactly these properties."""
    return {'type': 'object', 'properties': properties,
            'required': [*properties], 'additionalProperties': False}


def list_of(items: Schema) -> Schema:
    """Return the schema of a list."""
    return {'type': 'array', 'items': items}


#: The entry of a snapshot, see JournalEntry.
ENTRY = object_of(
    instance_uuid=_UUID, instance_name=TEXT, image_id=_UUID, strategy=_NAME,
    began_at=_TIME, problem=OPTIONAL_TEXT,
    disk=object_of(target=TEXT, storage=TEXT, path=TEXT, format=TEXT,
                   unsupported_reason=OPTIONAL_TEXT),
    records=list_of(object_of(
        kind=_NAME, data=OBJECT, blocks_start=FLAG, blocks_snapshot=FLAG)))

#: The entry of an image, see ImageEntry.
IMAGE = object_of(
    instance_uuid=_UUID, image_id=_UUID, strategy=_NAME, began_at=_TIME,
    project_id=OPTIONAL_TEXT, seen_by_nova=FLAG, reason=OPTIONAL_TEXT)


def dump(content: dict[str, ty.Any]) -> bytes:
    """Return a file's content, with its version and the name of this host."""
    return json.dumps({'version': VERSION, 'host': CONF.host, **content},
                      indent=1).encode()


def load(data: bytes, schema: Schema) -> dict[str, ty.Any]:
    """Return what a file contains, whose every type is as expected.

    :param schema: ENTRY or IMAGE
    :raises JournalFileNewer: a newer version of nova-snapext wrote it
    :raises JournalFileForeign: another host wrote it
    :raises JournalFileInvalid: it is damaged, or no file of the journal
    """
    content = _parse(data)
    version = content.pop('version', None)
    if type(version) is not int or version < 1:
        raise exception.JournalFileInvalid(reason='it has no version')
    if version > VERSION:
        raise exception.JournalFileNewer(
            reason=f'it has the version {_short(version)} of the format, and '
                   f'this nova-snapext reads version {VERSION}')
    host = content.pop('host', None)
    if not isinstance(host, str):
        raise exception.JournalFileInvalid(reason='it names no host')
    reason = mismatch(content, schema)
    if reason is not None:
        raise exception.JournalFileInvalid(reason=reason)
    if host != CONF.host:
        raise exception.JournalFileForeign(
            reason=f'it is of the host {_short(host)}, and this one is '
                   f'{CONF.host}. If this host was renamed, correct "host" in '
                   f'the file; otherwise give each host a '
                   f'[snapext]journal_directory of its own')
    return content


def mismatch(content: ty.Any, schema: Schema) -> str | None:
    """Return how a value differs from a schema; None if it does not."""
    error = next(jsonschema.Draft202012Validator(schema).iter_errors(content),
                 None)
    return error and _short(f'{error.json_path}: {error.message}')


def _parse(data: bytes) -> dict[str, ty.Any]:
    try:
        content = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_float=_finite,
            parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise exception.JournalFileInvalid(
            reason=_short(f'it is not JSON: {error}')) from error
    if not isinstance(content, dict):
        raise exception.JournalFileInvalid(reason='it is no JSON object')
    _check_depth(content)
    return content


def _unique(pairs: list[tuple[str, ty.Any]]) -> dict[str, ty.Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError('a name is there twice')
    return unique


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f'{text} is no number')
    return value


def _check_depth(content: ty.Any) -> None:
    """Check that what recurses over the content has a stack for it.

    :raises JournalFileInvalid: it has not
    """
    level = [content]
    for _depth in range(MAX_DEPTH):
        level = [item for value in level
                 for item in (value.values() if isinstance(value, dict)
                              else value if isinstance(value, list) else ())]
        if not level:
            return
    raise exception.JournalFileInvalid(
        reason=f'it is nested more than {MAX_DEPTH} levels deep')


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_REASON else f'{text[:MAX_REASON]}...'
