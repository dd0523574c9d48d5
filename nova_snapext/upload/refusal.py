# SPDX-License-Identifier: Apache-2.0
"""Why Glance refuses an image, for the user who requested it."""

from __future__ import annotations

import html
import re

#: Codes of answers that the user can do something about, and what that is.
#: They are those of glance/api/v2/image_data.py and images.py.
ADVICE = {
    400: 'its data or its properties are not valid',
    401: 'your token has expired or was revoked. Log in again, then take the '
         'snapshot again',
    403: 'you may not do this. Ask an operator which role or which property '
         'is not allowed',
    409: 'another request has uploaded data to it, or has changed it',
    413: 'a quota or a size limit is reached. Delete what you do not need, or '
         'ask an operator for more',
}

#: Of the codes that have an advice, those whose text is about the user's own
#: request.
TOLD = frozenset({400, 403, 413})

#: Whatever else: Glance, its store, or a proxy in front of it has failed.
OF_CLOUD = ('the service has a problem of its own, such as a full storage. '
            'Ask an operator of the cloud')

# Glance's text of StorageFull, which is a 413 as a full quota is.
STORAGE_FULL = 'storage media is full'

# The title that Glance's pages begin with, as "413 Request Entity Too Large".
TITLE = re.compile(r'^(\d{3}( [A-Z][A-Za-z]*)+: *)+')

# Paths, URLs, addresses and versions: Glance or a proxy describes itself.
OF_HOST = re.compile(r'[/\\]|\d+\.\d+|\w+\.\w+\.\w+')

# Characters of Glance's text, so that ours fits into the name of an event.
LENGTH = 110


def one_line(details: object) -> str:
    """Return the text of an answer, on one line.

    Glance responds in HTML; python-glanceclient removes only the tags.
    """
    return ' '.join(html.unescape(str(details)).split())


def for_users(code: int, details: object) -> str:
    """Return why Glance refuses an image, without what is of its host.

    :param code: of HTTP
    :param details: Glance's own text
    """
    text = TITLE.sub('', one_line(details))
    if code not in ADVICE or STORAGE_FULL in text:
        return OF_CLOUD
    # Without a text of Glance, it is the name of python-glanceclient's class.
    if code not in TOLD or OF_HOST.search(text) or ' ' not in text:
        return ADVICE[code]
    if len(text) > LENGTH:
        text = f'{text[:LENGTH - 3]}...'
    return f'{ADVICE[code]} ("{text}")'
