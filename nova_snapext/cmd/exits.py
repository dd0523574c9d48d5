# SPDX-License-Identifier: Apache-2.0
"""The exit codes of all commands, and the error that ends one."""

from __future__ import annotations

#: Nothing is left, and nothing is wrong.
CLEAN = 0
#: The command did its work, and found something: a check failed, a snapshot
#: waits to be recovered, or something could not be cleaned up.
FOUND = 1
#: The command line is wrong. argparse has this number.
USAGE = 2
#: The command could not do its work, or not all of it: another user has to
#: run it, Nova's configuration can't be read, nova-compute runs, libvirtd
#: does not respond.
NOT_DONE = 3
#: Ended by Ctrl-C, as a shell counts: 128 and the number of the signal.
INTERRUPTED = 130

#: The same for people.
TEXT = """\
exit codes:
  0  nothing is wrong, and nothing is left
  1  something was found: a check failed, or something waits or is left
  2  the command line is wrong
  3  the command could not find out, or could not do, all of it
  130  Ctrl-C has ended it
"""


class CommandError(Exception):
    """A command can't do its work. The text says why, and what to do."""


class NotAllowed(CommandError):
    """Another user has to run the command."""
