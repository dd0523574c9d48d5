# SPDX-License-Identifier: Apache-2.0
"""The sixth stage: an image, sent to Glance and compared with what it stored.

It knows Glance, and nothing of disks.
"""

from nova_snapext.upload.body import OnSent
from nova_snapext.upload.glance import ImageLook
from nova_snapext.upload.glance import upload

__all__ = ['ImageLook', 'OnSent', 'upload']
