# SPDX-License-Identifier: Apache-2.0
"""Nova's driver in a process of its own, for the commands that need it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
import contextlib
import logging
import os
import pwd
import shlex
import sys
import typing as ty

from nova_snapext import bounded
from nova_snapext.cmd import compute_config
from nova_snapext.cmd import exits
from nova_snapext import compat

# Nova, and each module that imports it, is imported when a command runs: the
# command check has to work where Nova can't be imported.

# Seconds that Nova's conductor has to answer a question about an instance.
RPC_TIMEOUT = 10

# Options that each command uses, with the groups they are in.
NEEDED = (('DEFAULT', 'host'), ('DEFAULT', 'instances_path'),
          ('snapext', 'journal_directory'), ('snapext', 'work_directory'))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for Nova's configuration."""
    for name, value in (('file', 'FILE'), ('dir', 'DIRECTORY')):
        parser.add_argument(
            f'--config-{name}', action='append', default=[], metavar=value,
            help='Nova\'s configuration; by default that of nova-compute')


def configure(options: argparse.Namespace) -> None:
    """Prepare this process as nova-compute does, with its configuration.

    :raises CommandError: the configuration can't be read, or the process has
        the wrong user
    """
    read_configuration(options)
    from nova import objects
    _set_up_log(options.debug)
    objects.register_all()


def _set_up_log(debug: bool) -> None:
    """Write Nova's log to its file, and nothing to the output of the command.

    Without a file oslo.log writes to it. What an operator has to know, the
    command prints itself.

    :param debug: write what is not for the file to stderr
    :raises CommandError: the log can't be written
    """
    from nova import config
    from oslo_log import log
    try:
        log.setup(config.CONF, 'nova')
    except Exception as error:
        # Also of logging.config, and of a file that it names.
        raise exits.CommandError(
            f'Nova\'s log can\'t be written: {error}. Correct '
            f'[DEFAULT]log_config_append, log_file or log_dir.') from error
    root = logging.getLogger()
    loggers = [one for one in root.manager.loggerDict.values()
               if isinstance(one, logging.Logger)]
    for logger in (root, *loggers):
        for handler in [*logger.handlers]:
            if not (isinstance(handler, logging.StreamHandler) and
                    handler.stream in (sys.stdout, sys.stderr)):
                continue
            if debug:
                handler.setStream(sys.stderr)
            else:
                logger.removeHandler(handler)
    # Without a handler Python itself writes warnings to stderr.
    root.addHandler(logging.NullHandler())


def read_configuration(options: argparse.Namespace) -> None:
    """Read nova-compute's configuration, and become its user.

    Nothing is created: also a log file must be of that user.

    :raises CommandError: the configuration can't be read, or the process has
        the wrong user
    """
    compat.use_native_threads()
    source = compute_config.find(options)
    compute_config.load(source)
    check_values(source)
    become_owner_of_state(state_path(source))


def check_values(source: compute_config.Source | None) -> None:
    """Check the options that all commands need.

    :raises CommandError: one has a value that can't be used
    """
    from nova_snapext import conf  # registers [snapext]
    del conf
    compute_config.check_values(source, NEEDED)


def state_path(source: compute_config.Source | None) -> str:
    """Return Nova's directory for its state.

    :raises CommandError: the option has no value that can be used
    """
    from nova import config
    compute_config.check_values(source, [('DEFAULT', 'state_path')])
    return str(config.CONF.state_path)


def become_owner_of_state(state_path: str) -> None:
    """Go on as the user that nova-compute runs as, if this is root.

    What another user creates, nova-compute could not use.

    :param state_path: Nova's directory for its state, which belongs to that
        user
    :raises CommandError: this is another user, or it is not known which user
        that is
    """
    try:
        owner = os.stat(state_path).st_uid
    except OSError as error:
        raise exits.CommandError(
            f'Nova\'s [DEFAULT]state_path can\'t be used: {error}. This '
            f'command runs as the owner of that directory. Run it on a '
            f'compute host, with the configuration of nova-compute '
            f'(--config-file), after nova-compute is installed.') from None
    if owner == os.geteuid():
        return
    try:
        user = pwd.getpwuid(owner)
    except KeyError:
        raise exits.CommandError(
            f'Nova\'s [DEFAULT]state_path ({state_path}) belongs to user id '
            f'{owner}, which has no name on this host. Run this command '
            f'where nova-compute runs: with a nova-compute in a container, '
            f'in that container.') from None
    # sudo has a PATH of its own, without that of a virtual environment.
    command = shlex.join([os.path.abspath(sys.argv[0]), *sys.argv[1:]])
    refused = (f'This command must run as {user.pw_name}, the user of '
               f'nova-compute, who owns {state_path}. Run "sudo -u '
               f'{user.pw_name} {command}".')
    if os.geteuid() != 0:
        raise exits.CommandError(refused)
    try:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except PermissionError as error:
        raise exits.CommandError(f'{refused} ({error})') from None
    os.environ.update(HOME=user.pw_dir, USER=user.pw_name,
                      LOGNAME=user.pw_name)
    # That of root may be closed to this user, and sudo then complains.
    os.chdir('/')


def run(command: Callable[[ty.Any], bool],
        lock: contextlib.AbstractContextManager[None]) -> int:
    """Run a command with a driver.

    :param command: returns whether nothing is left
    :param lock: keeps nova-compute from running beside it
    :returns: the exit code
    :raises CommandError: nova-compute has the lock, the journal can't be
        used, or libvirtd does not respond
    """
    import libvirt
    from nova import exception as nova_exception

    from nova_snapext import exception
    try:
        with lock:
            return exits.CLEAN if command(create_driver()) else exits.FOUND
    except (exception.JournalLocked, exception.JournalFailed) as error:
        raise exits.CommandError(str(error)) from error
    except exception.SnapextError as error:
        raise exits.CommandError(f'The command stopped: {error}') from error
    except (libvirt.libvirtError,
            nova_exception.HypervisorUnavailable) as error:
        # Nova's does not say what libvirt said.
        cause = error.__context__ if isinstance(
            error.__context__, libvirt.libvirtError) else error
        raise exits.CommandError(
            f'libvirt does not do what this command needs: '
            f'{str(cause).rstrip(".")}. Check that libvirtd runs, and that '
            f'{pwd.getpwuid(os.geteuid()).pw_name}, the user of nova-compute, '
            f'may use it.') from error


def create_driver() -> ty.Any:
    """Create a driver as nova-compute does, without its service."""
    from nova.conductor import rpcapi
    from nova import conf
    from nova.objects import base
    from nova import rpc
    from nova import utils
    from nova.virt import virtapi
    from oslo_privsep import priv_context

    from nova_snapext import driver
    priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
    rpc.init(conf.CONF)
    base.NovaObject.indirection_api = Conductor(rpcapi.ConductorAPI())
    # rpc.init() registers this option.
    conf.CONF.set_override('rpc_response_timeout', RPC_TIMEOUT)
    created = driver.SnapextDriver(virtapi.VirtAPI())
    # Nova's would enable or disable the compute service in the database.
    created._host._conn_event_handler = None
    created._host.initialize()
    return created


class Conductor:
    """Nova's conductor, which is not waited for longer than RPC_TIMEOUT.

    oslo.messaging's own timeout does not begin before RabbitMQ is reached,
    and kombu repeats that without a limit.

    :param api: Nova's ConductorAPI
    """

    def __init__(self, api: ty.Any):
        self._api = api

    def __getattr__(self, name: str) -> Callable[..., ty.Any]:
        method = getattr(self._api, name)

        def ask(*args: ty.Any, **kwargs: ty.Any) -> ty.Any:
            import oslo_messaging
            try:
                return bounded.call(lambda: method(*args, **kwargs),
                                    RPC_TIMEOUT)
            except bounded.NoResponse as error:
                raise oslo_messaging.MessagingTimeout(str(error)) from error

        return ask


def printable(text: str) -> str:
    """Return a text without characters that control a terminal.

    What the journal contains and how its files are named may be nonsense.
    """
    return ''.join(
        character if character.isprintable() or character == '\n'
        else ascii(character)[1:-1] for character in text)


def begin() -> None:
    """Prepare the process of a command, however it was started.

    A file that is opened gets the number of a descriptor which the caller has
    closed, and what is printed would be written to it. Nova can't be imported
    in a directory that was removed.
    """
    for number, name, mode in ((0, 'stdin', 'r'), (1, 'stdout', 'w'),
                               (2, 'stderr', 'w')):
        try:
            os.fstat(number)
        except OSError:
            # This returns the lowest number that is free.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    try:
        os.getcwd()
    except OSError:
        os.chdir('/')


def end(code: int) -> ty.NoReturn:
    """End the process: Nova's threads for libvirt's events never end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
