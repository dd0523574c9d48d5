# SPDX-License-Identifier: Apache-2.0
"""Start nova-compute, and change its configuration."""

from collections.abc import Sequence
import datetime

from devcloud import api
from devcloud import config
from devcloud import databases
from devcloud import services
from devcloud import state as cloud_state

#: Seconds until the driver must have started and reported resources.
UP_TIMEOUT = 120

#: nova-compute logs these if its driver did not start. With native threads it
#: continues to run then, but never reports.
START_FAILURES = ('Error starting thread.', 'Unable to load the virtualization'
                  ' driver', 'CRITICAL nova')


def start(state: cloud_state.State) -> bool:
    """Start nova-compute, unless it runs, and wait until it reports itself up.

    :returns: whether it was started
    :raises: CloudError with the end of its log
    """
    service = services.nova_compute(state)
    daemon = service.daemon(state)
    offset = state.log(service.name).stat().st_size \
        if state.log(service.name).exists() else 0
    since = datetime.datetime.now(datetime.UTC)
    if not service.start(state):
        return False
    admin = api.Client.admin(state)

    def is_up() -> bool:
        with open(daemon.log, errors='replace') as log:
            log.seek(offset)
            text = log.read()
        if any(failure in text for failure in START_FAILURES):
            raise daemon.failure('nova-compute could not start its driver')
        return _reported(admin, since)

    daemon.await_ready(is_up, UP_TIMEOUT)
    if not state.is_done('host-discovered'):
        databases.discover_host(state)
        state.mark_done('host-discovered')
    return True


def restart(state: cloud_state.State) -> None:
    """Stop nova-compute and start it again; guests continue to run."""
    services.nova_compute(state).stop(state)
    start(state)


def configure(state: cloud_state.State, settings: Sequence[str],
              reset: bool) -> bool:
    """Change options of nova-compute and Glance, and restart them.

    :param settings: each SECTION.OPTION=VALUE for nova-compute, or
        glance:SECTION.OPTION=VALUE; added to earlier settings
    :param reset: remove the earlier settings first
    :returns: whether nova-compute was started
    :raises: CloudError if a setting has a wrong form, or a service does not
        start with it
    """
    changed = config.override(state, settings, reset)
    if 'glance' in changed:
        glance = services.glance(state)
        glance.stop(state)
        glance.start(state)
        glance.await_ready(state)
    if ('nova-compute' in changed
            or not services.nova_compute(state).daemon(state).is_running()):
        restart(state)
        return True
    return False


def _reported(admin: api.Client, since: datetime.datetime) -> bool:
    """Return whether nova-compute has reported itself up since a time."""
    listed = admin.get('nova-api', '/os-services?binary=nova-compute')
    for service in listed['services']:
        updated = datetime.datetime.fromisoformat(
            service['updated_at'] or '1970-01-01').replace(
                tzinfo=datetime.UTC)
        if service['state'] == 'up' and updated > since:
            return True
    return False
