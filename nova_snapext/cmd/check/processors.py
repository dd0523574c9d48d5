# SPDX-License-Identifier: Apache-2.0
"""Whether the CPUs of this host are always used, and what is faster then."""

from __future__ import annotations

from collections.abc import Iterator
import re

from nova_snapext.cmd.check import item

NAME = 'cpus'

# https://docs.kernel.org/accounting/psi.html
PRESSURE = '/proc/pressure/cpu'

# Percent of the time in which a thread waited for a CPU. It was above 90 where
# the strategies were compared: doc/source/admin/performance-profile.inc.
HIGH = 50


def cpus(_host: item.Host) -> Iterator[item.Item]:
    """Tell whether the strategy suits a host whose CPUs are all used."""
    from nova_snapext import conf
    from nova_snapext.snapshot import selection
    percent = _pressure()
    if percent is None:
        yield item.ok(NAME, f'whether all CPUs are in use is not known: this '
                            f'kernel does not offer {PRESSURE}')
        return
    what = (f'threads waited for a CPU in {percent:.0f} % of the last five '
            f'minutes')
    if percent < HIGH or conf.CONF.libvirt.images_type == 'rbd':
        yield item.ok(NAME, what)
        return
    request = selection.request_of_host()
    names = [name for name, _by_auto in request.candidates()]
    first = next((name for name in names
                  if name in ('backup', 'external')), None)
    if first != 'backup':
        yield item.ok(NAME, what)
        return
    yield item.Item(
        NAME, item.Status.OK,
        f'{what}. If this is usual here, external is faster than backup, and '
        f'guests write more during it',
        f'To prefer it, set [snapext]strategy = external,{request}, and '
        f'restart nova-compute.')


def _pressure() -> float | None:
    """Return the percentage of the last five minutes; None if unknown."""
    try:
        with open(PRESSURE, encoding='ascii') as pressure:
            found = re.search(r'^some .*\bavg300=([\d.]+)', pressure.read(),
                              re.MULTILINE)
    except OSError:
        # A kernel without it, or that was started without psi=1.
        return None
    return float(found[1]) if found else None
