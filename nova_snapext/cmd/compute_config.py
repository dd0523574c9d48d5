# SPDX-License-Identifier: Apache-2.0
"""The configuration that nova-compute of this host really reads.

Distributions start nova-compute with files of their own: Debian's service
names nova.conf and then nova-compute.conf, and what is read last wins. So the
files are those that a running nova-compute was started with, and otherwise
those that a nova-compute without such options looks for.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import pathlib
import pwd
import re

from nova_snapext.cmd import exits

PROC = pathlib.Path('/proc')
PROGRAM = 'nova-compute'

# Nova's user with all packages and images of containers. With root's rights
# no file is read because another user has started a process that seems to be
# nova-compute.
USER = 'nova'

# Options of Python that have their value in the next word, and those after
# which there is no script.
PYTHON_VALUES = ('-W', '-X', '--check-hash-based-pycs')
PYTHON_NO_SCRIPT = ('-c', '-m')

# The options of oslo.config that name files.
OPTIONS = ('--config-file', '--config-dir')

# Variables in which oslo.config finds values of options: see its
# oslo_config/sources/_environment.py.
VARIABLE = re.compile(r'OS_[A-Z0-9_]+__[A-Z0-9_]+')

# Of a service of systemd, for programs that a shell does not find: see
# systemd.exec(5), "Environment Variables in Spawned Processes".
USUAL_PATH = ('/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin')


@dataclasses.dataclass(frozen=True)
class Process:
    """A running nova-compute.

    :ivar interpreter: path of its Python, as it was started
    :ivar arguments: its options that name files, with absolute paths
    :ivar is_here: it sees the same files as this process: it is not in a
        container
    :ivar is_trusted: it is a Python of root, of Nova's user, or of this user
    """

    pid: int
    interpreter: str
    arguments: tuple[str, ...]
    is_here: bool
    is_trusted: bool

    def environment(self) -> dict[str, str]:
        """Return its environment; nothing if it may not be read."""
        try:
            content = (PROC / str(self.pid) / 'environ').read_bytes()
        except OSError:
            return {}
        return dict(os.fsdecode(variable).split('=', 1)
                    for variable in content.split(b'\0') if b'=' in variable)

    def started_at(self) -> float:
        """Return when it was started, in seconds since 1970; 0 if unknown."""
        import psutil
        try:
            return float(psutil.Process(self.pid).create_time())
        except psutil.Error:
            return 0


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the configuration is.

    :ivar arguments: of a command line, that name all files
    :ivar process: the nova-compute that was started with them; None if they
        are from elsewhere
    :ivar text: where they are from, in words
    """

    arguments: tuple[str, ...]
    process: Process | None
    text: str

    def paths(self) -> tuple[str, ...]:
        """Return the files and directories, in the order of reading."""
        return self.arguments[1::2]


def find(options: argparse.Namespace | None = None) -> Source:
    """Return where the configuration of nova-compute is.

    :param options: of the command line
    :raises CommandError: it can't be told
    """
    running = [*processes()]
    named = tuple(argument for name in ('file', 'dir')
                  for path in getattr(options, f'config_{name}', ())
                  for argument in (f'--config-{name}', os.path.abspath(path)))
    if named:
        # The environment of a process decides over options and PATH.
        same = [process for process in running
                if process.is_here and process.is_trusted and
                process.arguments == named]
        return Source(named, same[0] if len(same) == 1 else None,
                      'named on the command line')
    usable = _of_this_python([process for process in running
                              if process.is_here and process.is_trusted])
    if len({process.arguments for process in usable}) > 1:
        listed = '; '.join(
            f'process {process.pid}: {" ".join(process.arguments)}'
            for process in usable)
        raise exits.CommandError(
            f'Several nova-compute run here, each with another configuration '
            f'({listed}). Name the one that is meant with --config-file and '
            f'--config-dir.')
    if usable and usable[0].arguments:
        return Source(usable[0].arguments, usable[0],
                      f'those of the running nova-compute, process '
                      f'{usable[0].pid}')
    usual = _usual()
    if not usual:
        elsewhere = (' A nova-compute runs in a container: run this command '
                     'there.' if any(not process.is_here
                                     for process in running) else '')
        raise exits.CommandError(
            f'No configuration of Nova was found: nova-compute does not run '
            f'here, and there is no /etc/nova/nova.conf.{elsewhere} Name it '
            f'with --config-file.')
    return Source(usual, usable[0] if usable else None,
                  'the usual ones of nova-compute')


def processes() -> Iterator[Process]:
    """Return each nova-compute that this user sees."""
    for directory in sorted(PROC.glob('[0-9]*')):
        try:
            words = [os.fsdecode(word) for word in
                     (directory / 'cmdline').read_bytes().split(b'\0')]
            script = _script(words)
            if script is None:
                continue
            is_trusted = (_users(directory) <= _trusted() and
                          _runs_python(directory))
        except OSError:
            continue  # it has ended, or is hidden
        yield Process(
            int(directory.name), words[0],
            tuple(_file_options(words[script + 1:], directory)),
            _is_here(directory), is_trusted)


def _script(words: Sequence[str]) -> int | None:
    """Return where a command line has nova-compute; None if it is another.

    The kernel puts the interpreter before a script. Red Hat's has an option:
    ``python3 -s /usr/bin/nova-compute``.
    """
    if not _is_python(words[0]):
        return None
    script = 1
    while words[script:] and words[script].startswith('-'):
        if words[script] in PYTHON_NO_SCRIPT:
            return None
        script += 2 if words[script] in PYTHON_VALUES else 1
    is_ours = os.path.basename(''.join(words[script:script + 1])) == PROGRAM
    return script if is_ours else None


def _is_python(path: str) -> bool:
    return os.path.basename(path).startswith('python')


def _users(process: pathlib.Path) -> set[int]:
    """Return the real, effective, saved and file system user ids.

    The owner of the directory is only the effective one, and root for a
    process that must not be traced: see proc(5).

    :raises OSError: it has ended
    """
    [ids] = re.findall(r'^Uid:(.*)$', (process / 'status').read_text(
        errors='replace'), re.MULTILINE)
    return {int(uid) for uid in ids.split()}


def _runs_python(process: pathlib.Path) -> bool:
    """Return whether a program is Python, whatever it calls itself.

    :returns: True if this user is not told
    :raises OSError: it has ended
    """
    try:
        return _is_python(os.readlink(process / 'exe'))
    except PermissionError:
        return True


def _file_options(words: Sequence[str],
                  process: pathlib.Path) -> Iterator[str]:
    """Return options that name files, and their values, as separate words."""
    remaining = iter(words)
    for word in remaining:
        option, equals, value = word.partition('=')
        if option not in OPTIONS:
            continue
        yield option
        path = value if equals else next(remaining, '')
        with contextlib.suppress(OSError):
            if not os.path.isabs(path):
                path = os.path.join(os.readlink(process / 'cwd'), path)
        yield path


def _is_here(process: pathlib.Path) -> bool:
    try:
        return os.readlink(process / 'ns' / 'mnt') == os.readlink(
            PROC / 'self' / 'ns' / 'mnt')
    except OSError:
        # Only root, and the process's own user, are told.
        return True


def _trusted() -> set[int]:
    trusted = {0, os.geteuid()}
    with contextlib.suppress(KeyError):
        trusted.add(pwd.getpwnam(USER).pw_uid)
    return trusted


def _of_this_python(running: list[Process]) -> list[Process]:
    """Return those that run by this command's Python, if there are any."""
    own = [process for process in running if is_of_this_python(process)]
    return own or running


def is_of_this_python(process: Process) -> bool:
    """Return whether a nova-compute was started by this command's Python."""
    import sys
    return os.path.dirname(process.interpreter) == os.path.dirname(
        sys.executable)


def _usual() -> tuple[str, ...]:
    """Return the files that nova-compute finds by itself."""
    from oslo_config import cfg
    return tuple(
        argument for option, paths in (
            ('--config-file', cfg.find_config_files('nova', PROGRAM)),
            ('--config-dir', cfg.find_config_dirs('nova', PROGRAM)))
        for path in paths for argument in (option, path))


def adopt_environment(process: Process | None) -> None:
    """Find the same programs and values of options as nova-compute.

    The operator's shell may have another PATH, or none.
    """
    environment = process.environment() if process is not None else {}
    os.environ['PATH'] = (environment.get('PATH') or os.environ.get('PATH') or
                          USUAL_PATH)
    os.environ.update({name: value for name, value in environment.items()
                       if VARIABLE.fullmatch(name)})


def load(source: Source) -> None:
    """Read Nova's configuration into nova.conf.CONF.

    :raises NotAllowed: this user may not read it
    :raises CommandError: it can't be read
    """
    adopt_environment(source.process)
    for path in source.paths():
        if _is_missing(path):
            raise exits.CommandError(
                f'Nova\'s configuration can\'t be read: {path}: it does not '
                f'exist.')
        # oslo.config finds nothing in a directory that it may not read.
        if not os.access(path, os.R_OK | (
                os.X_OK if os.path.isdir(path) else 0)):
            raise exits.NotAllowed(
                f'Nova\'s configuration can\'t be read: {path}: this user '
                f'may not read it. Run this command as root, or as the user '
                f'of nova-compute.')
    from nova import config
    from oslo_config import cfg
    try:
        # Only the drivers' own connections are needed.
        config.parse_args(['nova-compute', *source.arguments],
                          configure_db=False, init_rpc=False)
    except (cfg.Error, ValueError, OSError) as error:
        # The text of an error can contain a line of the file.
        raise exits.CommandError(
            f'Nova\'s configuration can\'t be read: {safe_text(error)}. '
            f'Correct the file.') from None


def value_error_text(error: Exception) -> str:
    """Return why an option has no value.

    If the value of an option of [DEFAULT] names an option that does not exist,
    oslo.config says that the first one does not: ConfigOpts.__getattr__() in
    oslo_config/cfg.py.
    """
    from oslo_config import cfg
    cause = error.__context__
    return str(cause if isinstance(cause, cfg.Error) else error).rstrip('.')


def _is_missing(path: str) -> bool:
    """Return whether a path does not exist; False if that is hidden."""
    try:
        os.stat(path)
    except OSError as error:
        return isinstance(error, (FileNotFoundError, NotADirectoryError))
    return False


def safe_text(error: Exception) -> str:
    """Return the text of an error, without what a file contains."""
    text = str(error).strip().rstrip('.').split('\n')[0]
    if type(error).__name__ != 'ConfigFileParseError':
        return text
    # "Failed to parse FILE: at FILE:LINE, REASON: 'the line'"
    return re.sub(r": '.*", '', text)
