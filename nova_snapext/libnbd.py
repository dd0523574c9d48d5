# SPDX-License-Identifier: Apache-2.0
"""Find libnbd's Python binding, which is a package of the host.

It is not on PyPI. A virtual environment sees the host's packages only with
``--system-site-packages``, and then sees all of them: Debian's python3-openssl
does not work with the cryptography of PyPI, and Nova does not start. So this
module loads the binding alone from where distributions install it.

It imports nothing of Nova: ``nova-snapext check`` needs it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import pathlib
import sys
import types
import typing as ty

# The first version that reads into a buffer of the caller and releases it
# afterwards.
MIN_VERSION = (1, 14)

# The package with the binding: Debian, Ubuntu, Red Hat, SUSE call it the same.
PACKAGE = 'python3-libnbd'

PYTHON = f'{sys.version_info.major}.{sys.version_info.minor}'

# Where distributions install their Python packages: Debian, Red Hat (64 bits),
# others. Debian has one directory for all versions of Python.
DIRECTORIES = ('/usr/lib/python3/dist-packages',
               f'/usr/lib64/python{PYTHON}/site-packages',
               f'/usr/lib/python{PYTHON}/site-packages')

# The compiled part of the binding, which the other one imports.
COMPILED = 'libnbdmod'
MODULE = 'nbd'


class LibnbdError(ImportError):
    """The binding can't be used. The text is one line, with the remedy."""


def load() -> types.ModuleType:
    """Return libnbd's binding.

    ``import nbd`` also works afterwards.

    :raises LibnbdError: it is not installed, not for this Python, or too old
    """
    try:
        module = importlib.import_module(MODULE)
    except ImportError as error:
        directory = _directory()
        if directory is None:
            raise LibnbdError(_missing(error)) from error
        module = _load_from(directory)
    _check_version(module)
    return module


def _directory() -> pathlib.Path | None:
    """Return the host's directory that has the binding for this Python."""
    for path in map(pathlib.Path, DIRECTORIES):
        if (path / f'{MODULE}.py').is_file() and _compiled(path):
            return path
    return None


def _compiled(directory: pathlib.Path) -> pathlib.Path | None:
    """Return the compiled part, if it is for this version of Python."""
    # The last suffix is a plain .so, which tells no version.
    for suffix in importlib.machinery.EXTENSION_SUFFIXES[:-1]:
        path = directory / f'{COMPILED}{suffix}'
        if path.is_file():
            return path
    # A directory of one version of Python needs no other sign of it.
    path = directory / f'{COMPILED}.so'
    return path if f'python{PYTHON}' in directory.parts and path.is_file() \
        else None


def _load_from(directory: pathlib.Path) -> types.ModuleType:
    """Load both parts of the binding, and nothing else of a directory.

    :raises LibnbdError: they can't be imported
    """
    try:
        _load_file(COMPILED, ty.cast(pathlib.Path, _compiled(directory)))
        return _load_file(MODULE, directory / f'{MODULE}.py')
    except Exception as error:
        raise LibnbdError(
            f'libnbd\'s Python binding in {directory} can\'t be imported: '
            f'{_line(error)}. Install the package {PACKAGE} of this host '
            f'again.') from error


def _load_file(name: str, path: pathlib.Path) -> types.ModuleType:
    spec = ty.cast(importlib.machinery.ModuleSpec,
                   importlib.util.spec_from_file_location(name, path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        ty.cast(ty.Any, spec.loader).exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _missing(error: ImportError) -> str:
    """Return why there is no binding, and what to do, in one line."""
    installed = [file.name for path in DIRECTORIES
                 for file in pathlib.Path(path).glob(f'{COMPILED}*.so')]
    if installed:
        return (f'libnbd\'s Python binding of this host is for another Python '
                f'({", ".join(installed)}) than {sys.executable} ({PYTHON}). '
                f'Run Nova with the Python of the distribution: create its '
                f'virtual environment with /usr/bin/python3.')
    if isinstance(error, ModuleNotFoundError) and error.name == MODULE:
        return (f'libnbd\'s Python binding is missing; it is not on PyPI. '
                f'Install the package {PACKAGE} of Debian, Ubuntu or Red Hat '
                f'on this host (in a container: in its image). Nothing else '
                f'is needed: a virtual environment finds it.')
    return (f'libnbd\'s Python binding can\'t be imported by '
            f'{sys.executable}: {_line(error)}. Install the package {PACKAGE} '
            f'of this host again.')


def _check_version(module: types.ModuleType) -> None:
    if not hasattr(module, 'NBD'):
        raise LibnbdError(
            f'{module.__file__} is not libnbd\'s Python binding, but has its '
            f'name. Uninstall it, and install the package {PACKAGE}.')
    version = module.NBD().get_version()
    if tuple(map(int, version.split('.')[:2])) < MIN_VERSION:
        raise LibnbdError(
            f'libnbd {version} of {module.__file__} is too old: '
            f'{".".join(map(str, MIN_VERSION))} or newer is needed. Install a '
            f'newer libnbd0 and {PACKAGE}.')


def _line(error: BaseException) -> str:
    return ' '.join(str(error).split())
