# SPDX-License-Identifier: Apache-2.0
"""The configuration that nova-compute of this host really reads.

Distributions start nova-compute with files of their own: Debian's service
names nova.conf and then nova-compute.conf, and what is read last wins. So the
files are those that a running nova-compute was started with, and otherwise
those that a nova-compute without such options looks for.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import glob
import io
import os
import pathlib
import pwd
import re
import typing as ty

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

UNREADABLE = 'Nova\'s configuration can\'t be read'


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

    def files(self) -> Iterator[str]:
        """Return all files, also those in directories, in that order."""
        for option, path in zip(self.arguments[::2], self.paths(),
                                strict=False):
            if option == '--config-dir':
                yield from sorted(glob.glob(os.path.join(
                    glob.escape(path), '*.conf')))
            else:
                yield path

    def place_of(self, group: str, name: str) -> str:
        """Return which file sets an option, in words.

        :param group: DEFAULT, or another one
        :returns: " in FILE", with the last such file; empty without one
        """
        from oslo_config import cfg
        place = ''
        for path in self.files():
            sections: dict[str, dict[str, ty.Any]] = {}
            with contextlib.suppress(cfg.Error, OSError, ValueError):
                cfg.ConfigParser(path, sections).parse()
            if name in {key.replace('-', '_') for section in sections
                        if section.lower() == group.lower()
                        for key in sections[section]}:
                place = f' in {path}'
        return place


def find(options: argparse.Namespace | None = None) -> Source:
    """Return where the configuration of nova-compute is.

    :param options: of the command line
    :raises CommandError: it can't be told
    """
    running = [*processes()]
    named = of_command_line(options)
    if named.arguments:
        # The environment of a process decides over options and PATH.
        same = [process for process in running
                if process.is_here and process.is_trusted and
                process.arguments == named.arguments]
        return dataclasses.replace(
            named, process=same[0] if len(same) == 1 else None)
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


def of_command_line(options: argparse.Namespace | None) -> Source:
    """Return the files that a command line names."""
    return Source(tuple(
        argument for name in ('file', 'dir')
        for path in getattr(options, f'config_{name}', ())
        for argument in (f'--config-{name}', os.path.abspath(path))),
        None, 'named on the command line')


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
    check_files(source)
    from nova import config
    from oslo_config import cfg
    errors = io.StringIO()
    try:
        # Only the drivers' own connections are needed.
        with contextlib.redirect_stderr(errors):
            config.parse_args(['nova-compute', *source.arguments],
                              configure_db=False, init_rpc=False)
    except (cfg.Error, ValueError, OSError) as error:
        raise exits.CommandError(
            reading_error_text(error, source)) from None
    except SystemExit:
        # oslo.config takes a wrong value of an option that Nova also has on
        # its command line for a wrong command line, although it is in a file.
        raise exits.CommandError(
            _refused_text(source, errors.getvalue())) from None


def check_files(source: Source) -> None:
    """Check that the configuration can be read.

    oslo.config finds nothing in a directory that it may not read, and nothing
    in a file that it takes for a directory. It does not say which file is not
    text.

    :raises NotAllowed: this user may not read it
    :raises CommandError: it does not exist, or is something else
    """
    for option, path in zip(source.arguments[::2], source.paths(),
                            strict=False):
        if _is_missing(path):
            raise exits.CommandError(f'{UNREADABLE}: {path}: it does not '
                                     f'exist.')
        is_directory = os.path.isdir(path)
        _check_access(path, os.R_OK | (os.X_OK if is_directory else 0))
        if is_directory is not (option == '--config-dir'):
            raise exits.CommandError(
                f'{UNREADABLE}: {path}: it is '
                f'{"a" if is_directory else "no"} directory. Name a file with '
                f'--config-file, and a directory with --config-dir.')
    for path in source.files():
        _check_access(path, os.R_OK)
        if not os.path.isfile(path):
            continue  # what a pipe contains can be read once
        try:
            with open(path) as file:
                file.read()
        except UnicodeDecodeError as error:
            raise exits.CommandError(
                f'{UNREADABLE}: {path}: it is not text in '
                f'{error.encoding.upper()} from byte {error.start} on. '
                f'Correct the file.') from None
        except OSError as error:
            raise exits.CommandError(f'{UNREADABLE}: {error}.') from None


def _check_access(path: str, mode: int) -> None:
    if not os.access(path, mode):
        raise exits.NotAllowed(
            f'{UNREADABLE}: {path}: this user may not read it. Run this '
            f'command as root, or as the user of nova-compute.')


def reading_error_text(error: Exception, source: Source) -> str:
    """Return a sentence on an error of oslo.config, and what to do."""
    # The text of an error can contain a line of the file.
    text, files = safe_text(error), [*source.files()]
    # That of a value which names an option that does not exist has no file.
    wrong = 'the file' if any(path in text for path in files) else (
        ' or '.join(files) or 'the command line')
    return f'{UNREADABLE}: {text}. Correct {wrong}.'


def _refused_text(source: Source, printed: str) -> str:
    """Return a sentence on a value that oslo.config took for an argument.

    :param printed: what it printed, as "argument --debug: Invalid Boolean
        value: perhaps"
    """
    # Before it, the usage can be printed.
    reason = ''.join(printed.strip().splitlines()[-1:])
    match = re.search(r'argument --([\w-]+): (.*)', reason)
    if match is None:
        return (f'{UNREADABLE}: {reason or "oslo.config refuses it"}. '
                f'Correct {" or ".join(source.files())}.')
    name = match[1].replace('-', '_')
    place = source.place_of('DEFAULT', name)
    return (f'[DEFAULT]{name}{place} can\'t be used: {match[2].rstrip(".")}. '
            f'Correct it.')


def check_values(source: Source | None,
                 wanted: Iterable[tuple[str, str]]) -> None:
    """Check that options have values that can be used.

    :param wanted: for each one its group and name
    :raises CommandError: one has none
    """
    for group, name in wanted:
        if reason := value_error(source, group, name):
            raise exits.CommandError(f'{reason}. Correct it.')


def value_error(source: Source | None, group: str, name: str) -> str:
    """Return that an option has no value that can be used, and why.

    :returns: a sentence without its full stop; empty if the value can be used
    """
    from nova import config
    try:
        if group == 'DEFAULT':
            getattr(config.CONF, name)
        elif name in config.CONF[group]:
            config.CONF[group][name]
    except Exception as error:
        place = source.place_of(group, name) if source is not None else ''
        return (f'[{group}]{name}{place} can\'t be used: '
                f'{value_error_text(error)}')
    return ''


def value_error_text(error: Exception) -> str:
    """Return why an option has no value, without its name and file."""
    # "Value for option X in FILE is not valid: REASON"
    return re.sub(r'^Value for option \S+ in .*? is not valid: (?=.)', '',
                  option_error_text(error))


def option_error_text(error: Exception) -> str:
    """Return the text of an error of oslo.config, for people.

    If the value of an option of [DEFAULT] names an option that does not exist,
    oslo.config says that the first one does not: ConfigOpts.__getattr__() in
    oslo_config/cfg.py.
    """
    cause = error.__context__
    text = str(cause if is_option_error(cause) else error)
    # "Value for option X from LocationInfo(location=..., detail='FILE') is
    # not valid: REASON"
    return re.sub(r" from LocationInfo\(.*?, detail='(.*?)'\)(?= is not)",
                  r' in \1', text).rstrip('.')


def is_option_error(error: BaseException | None) -> bool:
    """Return whether an error is one of oslo.config, if that is installed."""
    return type(error).__module__ == 'oslo_config.cfg'


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
