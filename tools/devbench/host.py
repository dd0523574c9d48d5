# SPDX-License-Identifier: Apache-2.0
"""Facts about the host of a run."""

import datetime
import os
import pathlib
import platform
import re

from devcloud import errors
from devcloud import shell


def facts() -> dict[str, object]:
    """Return facts about the machine and the versions of programs."""
    return {
        'when': datetime.datetime.now(datetime.UTC).isoformat(
            timespec='seconds'),
        'cores': os.cpu_count(),
        'processor': _first(r'model name\s*: (.*)', '/proc/cpuinfo'),
        'memory_mib': int(_first(r'MemTotal:\s*(\d+)', '/proc/meminfo')
                          or 0) // 1024,
        'system': _first(r'PRETTY_NAME="(.*)"', '/etc/os-release'),
        'kernel': platform.release(),
        'python': platform.python_version(),
        'qemu': version('qemu-img', '--version'),
        'libvirt': version('libvirtd', '--version'),
        'nbdcopy': version('nbdcopy', '--version'),
        'load_average': os.getloadavg()[0],
    }


def version(*command: str) -> str | None:
    """Return a program's version: the first number with dots it prints."""
    try:
        found = re.search(r'\d+(\.\d+)+', shell.run(command, timeout=20))
    except errors.CloudError:
        return None
    return found[0] if found else None


def packages(python: str, names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of packages of a Python interpreter.

    :param python: path of the interpreter
    """
    words = shell.run([
        python, '-c', 'import sys, importlib.metadata as metadata\n'
        'for name in sys.argv[1:]: print(name, metadata.version(name))',
        *names]).split()
    return dict(zip(words[::2], words[1::2], strict=True))


def _first(pattern: str, path: str) -> str | None:
    try:
        found = re.search(pattern, pathlib.Path(path).read_text())
    except OSError:
        return None
    return found[1].strip() if found else None
