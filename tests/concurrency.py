# SPDX-License-Identifier: Apache-2.0
"""Programs for a process of its own, with one of Nova's kinds of threads.

eventlet's patches can't be undone.
"""

from nova_snapext import compat

#: Those that nova-compute can have.
BACKENDS = (('threading', 'eventlet') if compat.nova_release() >= 33
            else ('eventlet',))


def beginning(backend):
    """Return the first lines of a program, which choose its threads."""
    lines = ['import os',
             'os.environ.pop("OS_NOVA_DISABLE_EVENTLET_PATCHING", None)',
             # The import alone does it in Nova 31.
             'from nova import monkey_patch']
    if compat.nova_release() >= 33:
        lines.append(f'monkey_patch.patch(backend={backend!r})')
    elif compat.nova_release() == 32:
        lines.append('monkey_patch.patch()')
    return '\n'.join([*lines, ''])
