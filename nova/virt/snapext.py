# SPDX-License-Identifier: Apache-2.0
"""The name that ``compute_driver = snapext.SnapextDriver`` refers to.

Nova loads drivers from its own package only. All code is in nova_snapext.
"""

import sys

from oslo_log import log as logging

from nova_snapext import compat

_reason = ''
try:
    from nova_snapext.driver import SnapextDriver
except ImportError as error:
    _reason = ' '.join((compat.too_old() or str(error)).split()).rstrip('.')

# Not in the handler: Nova's log would append the error again.
if _reason:
    # Nova ends at an ImportError, too, but logs its traceback in place of
    # what to do: load_compute_driver() in nova/virt/driver.py.
    logging.getLogger(__name__).error(
        'nova-compute can\'t use the driver of nova-snapext: %s. '
        '"nova-snapext check" says more', _reason)
    sys.exit(1)

__all__ = ['SnapextDriver']
