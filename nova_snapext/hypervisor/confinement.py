# SPDX-License-Identifier: Apache-2.0
"""How AppArmor and SELinux confine a guest's QEMU, and what they forbid it.

libvirt makes the policy of each guest. Where a fact is from its source, the
file is named: src/security/security_apparmor.c, src/security/virt-aa-helper.c
and src/security/security_selinux.c.

This module imports nothing of Nova and libvirt: ``nova-snapext check`` uses
it, too.
"""

from __future__ import annotations

from collections.abc import Iterator
import errno
import os
import pathlib
import re
import subprocess  # nosec B404
import typing as ty

from lxml import etree

#: Where AppArmor's policy is, and libvirt's part of it.
APPARMOR = pathlib.Path('/etc/apparmor.d')

#: Where distributions install the program that makes libvirt's profiles.
HELPERS = ('/usr/lib/libvirt/virt-aa-helper',
           '/usr/libexec/libvirt/virt-aa-helper',
           '/usr/libexec/virt-aa-helper')

# Seconds. The program only prints, and reads no disk: the definition has the
# whole chain.
HELPER_TIMEOUT = 10

_UUID = '00000000-0000-4000-8000-000000000000'
_DISK = '/var/lib/nova/instances/none/disk'

#: A guest on an overlay. None of its files exists.
_ON_OVERLAY = f"""
<domain type='qemu' id='1'>
  <name>none</name>
  <uuid>{_UUID}</uuid>
  <memory>1</memory>
  <os><type>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{_DISK}.snapext'/>
      <backingStore type='file'>
        <format type='qcow2'/>
        <source file='{_DISK}'/>
        <backingStore/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""

#: What the rules of the package allow below the work directory: the sockets,
#: as QEMU creates them and as they are afterwards.
SOCKETS = ('@{profile_name}/0123abcd/qemu/nbd',
           '@{profile_name}/0123abcd/nbd')
#: What some other guest has there.
SCRATCH_OF_OTHER = f'libvirt-{_UUID}/0123abcd/scratch'

# apparmor.d(5), "File rules": a path, perhaps in quotation marks, with the
# permissions behind it or in front of it. Rules with deny allow nothing.
_RULE = re.compile(r'(?:(?:allow|audit|file|owner)\s+)*'
                   r'(?:(?P<before>[a-zA-Z]+)\s+)?"?(?P<path>/[^"\s]*)"?'
                   r'(?:\s+(?P<after>[a-zA-Z]+))?\s*,')
_INCLUDE = re.compile(
    r'#?include\s+(?:if\s+exists\s+)?(?:<(?P<name>[^>]+)>|"(?P<path>[^"]+)")')


class Rule(ty.NamedTuple):
    """A rule of AppArmor that allows a path.

    :ivar path: the path as it is written, with its wildcards and variables
    :ivar permissions: the letters, such as ``rw``
    """

    path: str
    permissions: str


def apparmor_profile(definition: etree._Element) -> str | None:
    """Return the AppArmor profile of a running guest; None if it has none.

    :param definition: libvirt's live definition of the guest. Only a guest
        that was started in a profile has a label in it
    """
    for label in definition.findall("./seclabel[@model='apparmor']"):
        if label.get('type') != 'none':
            return label.findtext('label') or None
    return None


def helper_forbids_merge() -> bool | None:
    """Return whether the installed libvirt forbids to merge an overlay.

    Its program prints the profile that it would make for a guest on an
    overlay. So distributions that have backported the fix are found.

    :returns: None if nobody knows
    """
    helper = next(filter(os.path.exists, HELPERS), None)
    if helper is None:
        return None
    try:
        result = subprocess.run(  # nosec B603
            (helper, '--dryrun', '--replace', '--uuid', f'libvirt-{_UUID}'),
            input=_ON_OVERLAY, capture_output=True, text=True, check=True,
            timeout=HELPER_TIMEOUT)
    except (OSError, subprocess.SubprocessError):
        return None
    # Some versions print to stdout, some to stderr.
    profile = result.stdout + result.stderr
    if f'"{_DISK}.snapext"' not in profile:
        return None
    return _denies_write(profile, _DISK)


def _denies_write(profile: str, path: str) -> bool:
    """Return whether the text of a profile forbids to write to a file."""
    return re.search(rf'^\s*deny\s+"{re.escape(path)}"\s+\w*w', profile,
                     re.MULTILINE) is not None


def profile_that_forbids_write(definition: etree._Element,
                               path: str) -> pathlib.Path | None:
    """Return the profile of a guest that forbids it to write to a file.

    A rule with ``deny`` can't be overruled by what libvirt adds later. libvirt
    before 12.1 writes one for each backing file that a guest's disk has when
    it makes the profile (vah_add_path in virt-aa-helper.c).

    :param definition: libvirt's live definition of the guest
    :returns: the file with the rule; None if there is none, or nobody knows
    """
    profile = apparmor_profile(definition)
    if profile is None:
        return None
    file = APPARMOR / 'libvirt' / f'{profile}.files'
    try:
        text = file.read_text()
    except (OSError, ValueError):
        return None
    return file if _denies_write(text, os.path.realpath(path)) else None


def has_rules() -> bool:
    """Return whether libvirt's rules are here, and not on another host.

    nova-compute may be in a container.
    """
    return (APPARMOR / 'abstractions' / 'libvirt-qemu').exists()


def guest_rules() -> Iterator[Rule]:
    """Return the rules that every guest's profile includes.

    A file that does not exist is skipped.

    :raises OSError: a file can't be read
    """
    yield from _rules(APPARMOR / 'abstractions' / 'libvirt-qemu', set())


def _rules(path: pathlib.Path, seen: set[pathlib.Path]) -> Iterator[Rule]:
    """Return the rules of a file or directory, and of what it includes."""
    if path in seen:
        return
    seen.add(path)
    if path.is_dir():
        for file in sorted(path.iterdir()):
            yield from _rules(file, seen)
        return
    try:
        lines = path.read_text(errors='replace').splitlines()
    except FileNotFoundError:
        return
    for line in map(str.strip, lines):
        # An old include looks like a comment.
        if include := _INCLUDE.match(line):
            yield from _rules(
                pathlib.Path(include['path']) if include['path']
                else APPARMOR / include['name'], seen)
        elif not line.startswith('#') and (rule := _RULE.match(line)):
            yield Rule(rule['path'], rule['before'] or rule['after'] or '')


def allows_sockets(rules: list[Rule], work_directory: str) -> bool:
    """Return whether a guest may have the sockets of its own snapshots.

    :param rules: of all guests
    """
    return all(_allowed(rules, os.path.join(work_directory, socket), 'w')
               for socket in SOCKETS)


def open_rules(rules: list[Rule], work_directory: str) -> list[str]:
    """Return the rules that let a guest read the snapshots of other guests.

    :param rules: of all guests
    :returns: their paths
    """
    return _allowed(rules, os.path.join(work_directory, SCRATCH_OF_OTHER),
                    'r')


def _allowed(rules: list[Rule], path: str, permission: str) -> list[str]:
    """Return the paths of the rules that allow a path."""
    return [rule.path for rule in rules if permission in rule.permissions and
            _pattern(rule.path).fullmatch(path)]


def _pattern(path: str) -> re.Pattern[str]:
    """Return a pattern for the path of a rule: apparmor.d(5), "Globbing".

    A variable matches itself alone.
    """
    parts = re.split(r'(@\{\w+\}|\*\*|\*|\?|\[[^]]+\]|[{},])', path)
    pattern = ''.join(
        part if part.startswith('[') else
        {'**': '.*', '*': '[^/]*', '?': '[^/]',
         '{': '(?:', '}': ')', ',': '|'}.get(part, re.escape(part))
        for part in parts)
    try:
        return re.compile(pattern)
    except re.error:
        # Not what the parser accepts, either.
        return re.compile(re.escape(path))


def label_for_guest(path: str, definition: etree._Element) -> None:
    """Give a directory of Nova's the SELinux label of a guest's images.

    The policy lets QEMU create a socket in a directory with this type, and the
    categories keep the QEMUs of other guests out: manage_sock_files_pattern
    for svirt_image_t in the module virt of selinux-policy, and the constraints
    in its file mcs. What is created in the directory inherits the type. Does
    nothing if SELinux does not confine the guest.

    :param definition: libvirt's live definition of the guest
    :raises OSError: the label can't be set
    """
    label = definition.findtext("./seclabel[@model='selinux']/imagelabel")
    if not label:
        return
    try:
        os.setxattr(path, 'security.selinux', label.encode() + b'\0')
    except OSError as error:
        # Without labels, as on NFS, the file system has one for all its files.
        if error.errno != errno.ENOTSUP:
            raise
