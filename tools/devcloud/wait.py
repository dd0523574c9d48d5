# SPDX-License-Identifier: Apache-2.0
"""Wait for a condition, with a deadline, and say what did not come."""

from collections.abc import Callable
import http.client
import pathlib
import socket
import time
from typing import TypeVar
import urllib.error
import urllib.request

from devcloud import errors

#: Seconds between two looks at a condition.
INTERVAL = 0.3

Found = TypeVar('Found')


def until(what: str, check: Callable[[], Found | None], timeout: float,
          interval: float = INTERVAL) -> Found:
    """Wait until a check returns something true.

    :param what: what is awaited, for the error's text
    :param check: looked at again and again; what it raises goes through
    :param timeout: seconds to wait at most
    :param interval: seconds between two looks
    :returns: what the check returned
    :raises: TimedOut
    """
    deadline = time.monotonic() + timeout
    while not (found := check()):
        if time.monotonic() > deadline:
            raise errors.TimedOut(f'{what}: not within {timeout:.0f} s')
        time.sleep(interval)
    return found


def connectable(port: int, host: str = '127.0.0.1') -> bool:
    """Whether something listens on a TCP port."""
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def unix_connectable(path: pathlib.Path) -> bool:
    """Whether something listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def answers(address: str) -> bool:
    """Whether an HTTP server answers with anything but its own failure."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except urllib.error.HTTPError as exc:
        return exc.code < 500
    except (OSError, http.client.HTTPException):
        return False


def tail(log: pathlib.Path, lines: int = 25) -> str:
    """The last lines of a log, for an error's text."""
    if not log.exists():
        return f'({log} does not exist)'
    text = log.read_text(errors='replace').splitlines()[-lines:]
    return f'--- {log}\n' + '\n'.join(text)
