# SPDX-License-Identifier: Apache-2.0
"""Stage six: upload an image to Glance, and verify what Glance stored.

This package knows Glance, and nothing of disks.
"""

from nova_snapext.upload.body import OnProgress
from nova_snapext.upload.check import ImageDeletedCheck
from nova_snapext.upload.discard import discard
from nova_snapext.upload.discard import is_seen_by_nova
from nova_snapext.upload.discard import look_as_nova
from nova_snapext.upload.glance import CLIENT_ERRORS
from nova_snapext.upload.glance import GlanceImage
from nova_snapext.upload.glance import Metadata
from nova_snapext.upload.glance import upload
from nova_snapext.upload.refusal import for_users as refusal_for_users

__all__ = ['CLIENT_ERRORS', 'GlanceImage', 'ImageDeletedCheck', 'Metadata',
           'OnProgress', 'discard', 'is_seen_by_nova', 'look_as_nova',
           'refusal_for_users', 'upload']
