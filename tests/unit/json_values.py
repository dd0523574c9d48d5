# SPDX-License-Identifier: Apache-2.0
"""Every value of a JSON document, to replace one after the other."""

import copy


def places(value, path=()):
    """Return the path of each value in a document."""
    yield path
    items = (value.items() if isinstance(value, dict) else
             enumerate(value) if isinstance(value, list) else ())
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(content, path, value):
    """Return a copy of a document with another value at a path."""
    if not path:
        return value
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content
