# SPDX-License-Identifier: Apache-2.0
"""Run programs, and write files atomically."""

from collections.abc import Mapping, Sequence
import os
import pathlib
import shutil
import subprocess

from devcloud import errors

#: Maximum duration of a program, in seconds.
COMMAND_TIMEOUT = 900


def run(argv: Sequence[str | os.PathLike], *, timeout: float = COMMAND_TIMEOUT,
        env: Mapping[str, str] | None = None, stdin: str | None = None,
        cwd: str | os.PathLike | None = None, user: str | None = None,
        group: str | None = None) -> str:
    """Run a program and return its output.

    :param argv: program and arguments
    :param timeout: seconds after which it is killed
    :param env: variables to add to our own environment
    :param stdin: text for its standard input
    :param cwd: directory to run it in
    :param user: run as this user, without further groups
    :param group: run as this group
    :returns: its standard output
    :raises: CommandFailed with all its output, if it fails
    :raises: TimedOut if it takes too long
    """
    words = [os.fspath(word) for word in argv]
    try:
        done = subprocess.run(
            words, timeout=timeout, input=stdin, text=True, cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True, env={**os.environ, **(env or {})},
            user=user, group=group, extra_groups=[] if user else None)
    except FileNotFoundError as exc:
        raise errors.CloudError(f'{words[0]} is not installed') from exc
    except subprocess.TimeoutExpired as exc:
        raise errors.TimedOut(
            f'`{" ".join(words)}` did not end within {timeout:.0f} s') from exc
    if done.returncode:
        raise errors.CommandFailed(
            words, done.returncode, done.stdout + done.stderr)
    return done.stdout


def write(path: pathlib.Path, text: str, mode: int = 0o644,
          group: str | None = None) -> bool:
    """Write a file atomically, unless it has this content already.

    :param path: file to write
    :param text: its whole content
    :param mode: its permissions
    :param group: its group's name
    :returns: whether the file has changed
    """
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f'.{path.name}.new')
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, 'w') as stream:
        stream.write(text)
    os.chmod(new, mode)
    if group:
        shutil.chown(new, group=group)
    new.replace(path)
    return True
