# SPDX-License-Identifier: Apache-2.0
"""Whether nova-compute uses the driver, and whether its options are right."""

from __future__ import annotations

from collections.abc import Iterator
import configparser
import datetime
import difflib
import importlib.metadata
import os
import pathlib
import shutil
import sys
import typing as ty

from nova_snapext.cmd.check import installation
from nova_snapext.cmd.check import item
from nova_snapext.cmd import compute_config
from nova_snapext.cmd import exits

DRIVER = 'snapext.SnapextDriver'
GROUP = 'snapext'

# What Nova adds to the name of a driver: load_compute_driver() in
# nova/virt/driver.py.
PREFIX = 'nova.virt.'

# Seconds that Linux's time of a start may be too early: psutil adds it to that
# of the boot, which /proc/stat has in whole seconds. nova-compute takes longer
# before it reads a file.
START_ERROR = 1

# Root's part of the driver is started by this program of oslo.privsep.
HELPER = 'privsep-helper'

# Options of Nova that each snapshot uses, with the groups they are in.
USED = {'DEFAULT': ('compute_driver', 'host', 'instances_path', 'state_path',
                    'reserved_host_disk_mb', 'rootwrap_config'),
        'libvirt': ('connection_uri', 'images_type', 'images_rbd_pool',
                    'snapshot_compression', 'snapshot_image_format',
                    'snapshots_directory', 'virt_type'),
        'glance': ('num_retries', 'timeout'),
        'service_user': ('send_service_user_token', 'auth_type')}


def files(host: item.Host) -> Iterator[item.Item]:
    """Read the configuration, and tell where it is from."""
    try:
        source = compute_config.find(host.options)
        compute_config.load(source)
    except exits.NotAllowed as error:
        yield item.unknown(
            'configuration', f'This user does not see what has to be checked: '
                             f'the configuration, libvirt, directories, '
                             f'Glance and guests. {error}')
        return
    except exits.CommandError as error:
        yield item.failed('configuration', str(error))
        return
    host.source = source
    yield item.ok('configuration', f'Nova\'s configuration files, '
                                   f'{source.text}: '
                                   f'{", ".join(source.paths())}')


def compute_driver(host: item.Host) -> Iterator[item.Item]:
    """Check that the driver is on, in what nova-compute really reads."""
    from nova_snapext import conf
    if reason := compute_config.value_error(host.source, 'DEFAULT',
                                            'compute_driver'):
        yield item.failed('compute-driver', f'{reason}.',
                          f'Set compute_driver = {DRIVER} in [DEFAULT].')
        return
    name = conf.CONF.compute_driver or ''
    where = _where('compute_driver')
    if name.removeprefix(PREFIX) == DRIVER:
        yield item.ok('compute-driver', f'compute_driver = {name}{where}')
        return
    yield item.failed(
        'compute-driver',
        f'nova-compute does not use the driver: compute_driver is '
        f'{name or "not set"}{where}.',
        f'Set compute_driver = {DRIVER} in [DEFAULT]'
        f'{where.replace(", set in", " of") or " of nova.conf"}, and restart '
        f'nova-compute. Of several files, the last one decides.')


def _where(name: str, group: str | None = None) -> str:
    """Return where an option is set, in words; empty if nowhere."""
    from nova_snapext import conf
    location = conf.CONF.get_location(name, group)
    if location is None or not location.detail or (
            location.location.name != 'user'):
        return ''
    return f', set in {location.detail}'


def running(host: item.Host) -> Iterator[item.Item]:
    """Check that the running nova-compute is what was checked here."""
    if host.source is None or host.source.process is None:
        yield item.ok('nova-compute', 'nova-compute does not run, or is not '
                                      'seen by this user')
        return
    process = host.source.process
    started_at = process.started_at()
    changed = [path for path in host.source.files()
               if started_at > 0 and os.path.exists(path) and
               os.stat(path).st_mtime > started_at + START_ERROR]
    if changed:
        when = datetime.datetime.fromtimestamp(
            started_at, datetime.UTC).isoformat(timespec='seconds')
        yield item.warning(
            'nova-compute', f'nova-compute, process {process.pid}, has run '
            f'since {when}, and these files were changed later: '
            f'{", ".join(changed)}.', 'Restart nova-compute.')
        return
    if not compute_config.is_of_this_python(process):
        yield item.warning(
            'nova-compute', f'nova-compute, process {process.pid}, was '
            f'started as {process.interpreter}, and this command runs by '
            f'another Python, whose packages are checked here.',
            f'Install {installation.DISTRIBUTION} for that Python, and run '
            f'its nova-snapext.')
        return
    yield item.ok('nova-compute', f'nova-compute runs, process {process.pid}')


def options(host: item.Host) -> Iterator[item.Item]:
    """Check that each option has a value that the driver can use."""
    from nova_snapext import conf
    from nova_snapext.encode import codec
    from nova_snapext import exception
    from nova_snapext.snapshot import selection
    found = [*_invalid_values(host)]
    if not found:
        names = importlib.metadata.entry_points(
            group=installation.NAMESPACE).names
        try:
            selection.check_options(ty.cast(ty.Any, dict.fromkeys(names)))
        except exception.SnapextError as error:
            found.append(item.failed('options', str(error)))
        try:
            codec.check_options()
        except exception.SnapextError as error:
            found.append(item.failed('options', str(error)))
        found += _of_one_kind_of_host()
    found += _unknown_names(host)
    yield from found or [item.ok(
        'options', f'all options of [{conf.GROUP.name}] have values that can '
                   f'be used')]


def _invalid_values(host: item.Host) -> Iterator[item.Item]:
    from nova_snapext import conf
    wanted = {**USED, GROUP: [opt.dest for opt in conf.ALL_OPTS]}
    for group, names in wanted.items():
        for name in names:
            if reason := compute_config.value_error(host.source, group, name):
                yield item.failed('options', f'{reason}.', 'Correct it.')


def _of_one_kind_of_host() -> Iterator[item.Item]:
    """Check values that can be used, and leave snapshots to Nova."""
    from nova_snapext import conf
    from nova_snapext.snapshot import selection
    libvirt = conf.CONF.libvirt
    if libvirt.virt_type not in ('kvm', 'qemu'):
        yield item.warning(
            'options', f'[libvirt]virt_type is {libvirt.virt_type}: its '
                       f'guests have no QEMU, and only Nova\'s own snapshots '
                       f'are possible.')
    request = conf.CONF.snapext.strategy
    if libvirt.images_type == 'rbd' and not selection.FOR_CEPH & {
            *selection.StrategyRequest.parse(request, '').names}:
        yield item.failed(
            'options', f'[snapext]strategy is {request}, and serves no disk '
                       f'in Ceph, where this host has its disks.',
            f'Write "{request},rbd", or "auto".')


def _unknown_names(host: item.Host) -> Iterator[item.Item]:
    """Report options of ours that do not exist: oslo.config ignores them."""
    from oslo_config import cfg

    from nova_snapext import conf
    known = {str(name) for opt in conf.ALL_OPTS for name in (
        opt.name, opt.dest, *(old.name for old in opt.deprecated_opts))}
    for path in host.source.files() if host.source else ():
        sections: dict[str, dict[str, ty.Any]] = {}
        try:
            cfg.ConfigParser(path, sections).parse()
        except (cfg.Error, OSError, ValueError):
            continue  # files() has reported it
        for section, values in sections.items():
            if section.lower() != GROUP:
                continue
            for name in sorted({*values} - known):
                near = difflib.get_close_matches(name, known, 1)
                yield item.warning(
                    'options', f'[{GROUP}]{name} in {path} is not an option, '
                               f'and is ignored.',
                    f'Did you mean {near[0]}?' if near else 'Remove it.')


def guest_trim(_host: item.Host) -> Iterator[item.Item]:
    """Check that guests can give back free space before a snapshot."""
    from nova_snapext import conf
    name = 'guest-trim'
    wanted = conf.CONF.snapext.guest_trim
    if wanted == 'never':
        yield item.ok(name, '[snapext]guest_trim is never: guests do not trim '
                            'for a snapshot')
        return
    reason = None
    if conf.CONF.libvirt.hw_disk_discard != 'unmap':
        reason = ('their disks do not pass discards on: '
                  '[libvirt]hw_disk_discard is not unmap')
        remedy = ('Set it, and restart nova-compute. A guest that runs gets '
                  'it at its next hard reboot.')
    elif conf.CONF.preallocate_images == 'space':
        reason = ('the space of their disks is kept: '
                  '[DEFAULT]preallocate_images is space')
        remedy = 'Set [snapext]guest_trim = never.'
    if reason is None:
        yield item.ok(name, f'[snapext]guest_trim is {wanted}, and new guests '
                            f'can give back free space')
    elif wanted == 'always':
        yield item.warning(name, f'[snapext]guest_trim is always, but guests '
                                 f'can\'t trim: {reason}.', remedy)
    else:
        yield item.ok(name, f'guests do not trim for a snapshot, although '
                            f'requests may ask for it: {reason}')


def rootwrap(_host: item.Host) -> Iterator[item.Item]:
    """Check that rootwrap can be used, and finds the right helper.

    It needs no filter: load_filters() in oslo_rootwrap/wrapper.py always adds
    one for the helper.
    """
    from nova_snapext import conf
    path = conf.CONF.rootwrap_config
    if conf.CONF.workarounds.disable_rootwrap:
        yield item.ok('rootwrap', '[workarounds]disable_rootwrap is set: '
                                  'sudo decides alone')
        return
    config = configparser.RawConfigParser()
    try:
        # Not config.read(), which skips what it may not read.
        config.read_string(pathlib.Path(path).read_text())
        _check_filters(config)
    except FileNotFoundError:
        yield item.failed(
            'rootwrap', f'[DEFAULT]rootwrap_config {path} does not exist: '
                        f'Nova can do nothing as root.',
            'Install the file of your distribution\'s Nova.')
    except PermissionError as error:
        yield item.unknown(
            'rootwrap', f'The filters of {path} can\'t be read: {error}.',
            'Run this command as root, or as the user of nova-compute.')
    except (OSError, ValueError, configparser.Error) as error:
        yield item.failed('rootwrap', f'The filters of {path} can\'t be '
                                      f'used: {error}.', 'Correct them.')
    else:
        yield _helper(config, path)


def _check_filters(config: configparser.RawConfigParser) -> None:
    """Read the filters as rootwrap does: one that is broken ends it.

    :raises OSError: a file can't be read
    :raises configparser.Error: a file can't be used
    """
    for directory in map(pathlib.Path, _directories(config, 'filters_path')):
        for file in sorted(directory.iterdir()) if directory.is_dir() else ():
            if file.is_file() and not file.name.startswith('.'):
                filters = configparser.RawConfigParser(strict=False)
                filters.read_string(file.read_text(), str(file))
                filters.items('Filters')


def _directories(config: configparser.RawConfigParser,
                 option: str) -> list[str]:
    listed = config.get('DEFAULT', option, fallback='').split(',')
    return [directory.strip() for directory in listed if directory.strip()]


def _helper(config: configparser.RawConfigParser, path: str) -> item.Item:
    """Check which privileged helper rootwrap runs: the first that it finds."""
    # Without this option rootwrap has sudo's PATH.
    listed = os.pathsep.join(_directories(config, 'exec_dirs'))
    where = f'exec_dirs of {path}'
    if not listed:
        return item.ok('rootwrap', f'rootwrap can be used; {where} is not '
                                   f'set, and sudo\'s PATH decides')
    found = shutil.which(HELPER, path=listed)
    if found is None:
        return item.failed(
            'rootwrap', f'rootwrap does not find {HELPER}: it is in no '
                        f'directory of {where} ({listed}).',
            f'Add {_own_directory()} there, as the first one.')
    own = shutil.which(HELPER, path=_own_directory())
    if own is not None and not os.path.samefile(found, own):
        return item.warning(
            'rootwrap', f'rootwrap runs {found}, and not {own}, which is the '
                        f'one of this Python: the other one may not find '
                        f'{installation.DISTRIBUTION}.',
            f'Name {_own_directory()} first in {where}.')
    return item.ok('rootwrap', f'rootwrap can be used, and runs {found}')


def _own_directory() -> str:
    """Return where the programs of this Python are."""
    return os.path.dirname(sys.executable)
