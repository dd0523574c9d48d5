# SPDX-License-Identifier: Apache-2.0
"""Wait for a condition, with a timeout."""

from collections.abc import Callable
import http.client
import pathlib
import socket
import time
from typing import TypeVar
import urllib.error
import urllib.request

from devcloud import errors

#: Seconds between two checks of a condition.
INTERVAL = 0.3

Found = TypeVar('Found')


def until(what: str, check: Callable[[], Found | None], timeout: float,
          interval: float = INTERVAL) -> Found:
    """Wait until a check returns something true.

    :param what: name of the condition, for the error's text
    :param check: called repeatedly; its exceptions are not caught
    :param timeout: maximum seconds to wait
    :param interval: seconds between two calls
    :returns: the last result of the check
    :raises: TimedOut
    """
    deadline = time.monotonic() + timeout
    while not (found := check()):
        if time.monotonic() > deadline:
            raise errors.TimedOut(f'{what}: timed out after {timeout:.0f} s')
        time.sleep(interval)
    return found


def connectable(port: int, host: str = '127.0.0.1') -> bool:
    """Return whether a process listens on a TCP port."""
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def unix_connectable(path: pathlib.Path) -> bool:
    """Return whether a process listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def http_responds(address: str) -> bool:
    """Return whether an HTTP server responds without a server error."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except urllib.error.HTTPError as exc:
        return exc.code < 500
    except (OSError, http.client.HTTPException):
        return False


def tail(log: pathlib.Path, lines: int = 25) -> str:
    """Return the last lines of a log, for an error's text."""
    if not log.exists():
        return f'({log} does not exist)'
    text = log.read_text(errors='replace').splitlines()[-lines:]
    return f'--- {log}\n' + '\n'.join(text)
