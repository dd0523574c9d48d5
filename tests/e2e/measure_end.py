# SPDX-License-Identifier: Apache-2.0
"""The time between "the image is active" and "the server is free again".

As a program, on a cloud of `tools/cloud up`::

    python -m tests.e2e.measure_end [ROUNDS [STRATEGY...]] > results.json

A client that goes on as soon as the image is active gets a conflict (409) for
this time. A table goes to standard error: seconds, and below them the lines of
nova-compute's log in between, with their time after "active".
"""

import contextlib
import datetime
import json
import re
import statistics
import sys
import time

from devcloud import api
from devcloud import compute
from devcloud import servers
from devcloud import state as cloud_state
from devcloud import wait
from devcloud import watch

from tests.e2e import base

STRATEGIES = ('backup', 'external', 'internal', 'cold', 'native')

# Seconds between two requests for the image's status. A shorter interval
# would take CPU time from what is measured.
INTERVAL = 0.1

STAMP = re.compile(r'^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) \d+ (.*)')


class ImageStatus(watch.Poller):
    """Polls the status of an image.

    :ivar active: when it became active, in seconds since the epoch
    """

    interval = INTERVAL

    def __init__(self, client, image):
        super().__init__()
        self.client = client
        self.image = image
        self.active = None

    def poll(self):
        if self.active is None:
            asked = time.time()
            shown = self.client.get('glance', f'/images/{self.image}')
            if shown['status'] == 'active':
                self.active = asked


def measure(state, client, server, strategy):
    """Take a snapshot.

    :returns: seconds between the two, and the lines of the log in between
    """
    with open(state.log('nova-compute'), errors='replace') as log:
        log.seek(0, 2)
        with watch.TaskStates(state, server) as tasks:
            image = servers.action(client, server, 'createImage', {
                'name': 'measure-end',
                'metadata': {'snapext_strategy': strategy}})['image_id']
            try:
                with ImageStatus(client, image) as status:
                    ended = wait.until('the end of the snapshot', tasks.ended,
                                       base.SNAPSHOT_TIMEOUT)
                    wait.until('the image to be active', lambda: (
                        status.active), 10)
                status.check()
            finally:
                client.delete('glance', f'/images/{image}', missing_ok=True)
        # To seconds since the epoch.
        free = ended + time.time() - time.monotonic()
        return free - status.active, lines_between(
            log.read(), status.active, free)


def lines_between(text, begin, end):
    found = []
    for line in text.splitlines():
        stamp = STAMP.match(line)
        if stamp is None:
            continue
        when = datetime.datetime.fromisoformat(stamp[1]).timestamp()
        if begin - 1 <= when <= end + 0.5:
            found.append((round(when - begin, 3), stamp[2]))
    return found


def run(rounds, strategies):
    state = cloud_state.State.default()
    client = api.Client.demo(state)
    results = {strategy: [] for strategy in strategies}
    with contextlib.ExitStack() as stack:
        stack.callback(compute.configure, state, (), reset=True)
        compute.configure(state, (
            f'snapext.allowed_image_strategies=auto,{",".join(strategies)}',
            # The log shows what takes the time.
            'DEFAULT.debug=true'), reset=True)
        server = servers.create(
            client, 'measure-end', servers.image_id(client, 'snap-guest'),
            'snap.tiny')
        stack.callback(servers.delete, client, server)
        with watch.Console(
                state.instances / server / 'console.log') as console:
            wait.until('the guest to write', lambda: (
                console.last() > base.WARM_UP_RECORDS), base.BOOT_TIMEOUT)
        for number in range(rounds):
            for strategy in strategies:
                seconds, lines = measure(state, client, server, strategy)
                results[strategy].append({'seconds': seconds, 'log': lines})
                print(number, strategy, f'{seconds:.2f}', file=sys.stderr,
                      flush=True)
    return results


def table(results):
    """Return the median, the lowest and the highest seconds of each."""
    lines = []
    for strategy, found in results.items():
        seconds = [one['seconds'] for one in found]
        lines.append(f'{strategy:10}{statistics.median(seconds):8.2f} '
                     f'({min(seconds):.2f} to {max(seconds):.2f})')
    return '\n'.join(lines)


if __name__ == '__main__':
    measured = run(int(sys.argv[1]) if len(sys.argv) > 1 else 3,
                   sys.argv[2:] or STRATEGIES)
    print(table(measured), file=sys.stderr)
    json.dump(measured, sys.stdout, indent=1)
