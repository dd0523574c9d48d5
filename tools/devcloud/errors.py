# SPDX-License-Identifier: Apache-2.0
"""Errors. Their texts are for the user who ran the command."""


class CloudError(Exception):
    """The command failed; the text has the reason and the remedy."""


class CommandFailed(CloudError):
    """A program that we ran exited with an error."""

    def __init__(self, argv: list[str], code: int, output: str) -> None:
        self.argv = argv
        self.code = code
        self.output = output
        super().__init__(
            f'`{" ".join(argv)}` exited with code {code}:\n'
            f'{output.strip()}')


class TimedOut(CloudError):
    """A condition was not met in time."""


class ApiError(CloudError):
    """An OpenStack service returned an error."""

    def __init__(self, method: str, url: str, code: int, body: str) -> None:
        self.code = code
        self.body = body
        super().__init__(f'{method} {url} returned {code}: {body.strip()}')
