# SPDX-License-Identifier: Apache-2.0
"""What goes wrong, in words for whoever typed the command."""


class CloudError(Exception):
    """The command cannot go on; the text says why and what to do."""


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
    """What was awaited did not come in time."""


class ApiError(CloudError):
    """An OpenStack service answered with an error."""

    def __init__(self, method: str, url: str, code: int, body: str) -> None:
        self.code = code
        self.body = body
        super().__init__(f'{method} {url} answered {code}: {body.strip()}')
