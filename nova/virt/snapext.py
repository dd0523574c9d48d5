# SPDX-License-Identifier: Apache-2.0
"""The name that ``compute_driver = snapext.SnapextDriver`` refers to.

Nova loads drivers from its own package only, so this module is installed into
Nova's directory. All code is in nova_snapext.
"""

from nova_snapext.driver import SnapextDriver

__all__ = ['SnapextDriver']
