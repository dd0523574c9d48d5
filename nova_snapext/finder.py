# SPDX-License-Identifier: Apache-2.0
"""Let Python find nova.virt.snapext where pip has installed it.

Nova loads drivers from its package ``nova.virt`` alone, which is a directory.
Beside a distribution's Nova, pip installs into another one: on Debian
/usr/local/lib/python3.X/dist-packages, while Nova is in
/usr/lib/python3/dist-packages.

``nova-snapext.pth``, which is installed beside this package, registers this
finder in each Python that starts. So it imports nothing, not even ``typing``:
that takes milliseconds, and an import of Nova or eventlet before Nova has
chosen its kind of threads breaks nova-compute.
"""

import sys

MODULE = 'nova.virt.snapext'


class Finder:
    """Finds one module, if nobody else does."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None,
                  ) -> object:
        if name != MODULE:
            return None
        # Nova is being imported: everything is there by now.
        import importlib.util
        import os
        source = os.path.join(os.path.dirname(os.path.dirname(__file__)),
                              *MODULE.split('.')) + '.py'
        if not os.path.isfile(source):
            return None
        return importlib.util.spec_from_file_location(name, source)


def register() -> None:
    """Add the finder behind all others, once."""
    finders: list[object] = sys.meta_path  # type: ignore[assignment]
    if not is_registered():
        finders.append(Finder)


def is_registered() -> bool:
    """Return whether this Python has read nova-snapext.pth."""
    finders: list[object] = sys.meta_path  # type: ignore[assignment]
    return Finder in finders
