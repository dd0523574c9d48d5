# SPDX-License-Identifier: Apache-2.0
"""Whether Glance and Keystone respond, and what they say to Nova.

This only reads. Which properties Glance protects shows only when an image has
them: ``check --trial`` tries that.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import types
import typing as ty
import uuid

from nova_snapext.cmd.check import item
from nova_snapext.cmd.check import trial

# A request that only reads.
NO_IMAGE = '00000000-0000-4000-8000-000000000000'

# Percent of a quota that is in use, from which an operator should know.
NEARLY = 90


def service_user(host: item.Host) -> Iterator[item.Item]:
    """Check [service_user] with a token of its own."""
    from keystoneauth1 import exceptions as ks_exceptions
    from keystoneauth1 import loading

    from nova_snapext import cancel
    from nova_snapext import conf
    from nova_snapext.upload import connection
    from nova_snapext.upload import service_user as service
    name = 'service-user'
    options = conf.CONF.service_user
    if not options.send_service_user_token:
        yield item.warning(
            name, '[service_user]send_service_user_token is not set: an '
                  'upload fails if the user\'s token expires during the '
                  'snapshot, and images are not made inside Ceph.',
            'Set it, with the user of Nova as in [keystone_authtoken].')
    try:
        auth: ty.Any = loading.load_auth_from_conf_options(
            conf.CONF, 'service_user')
        if auth is None:
            host.service_user = False
            yield item.failed(
                name, '[service_user] has no auth_type: incomplete images of '
                      'interrupted snapshots can\'t be deleted.',
                'Set it as in [keystone_authtoken].')
            return
        session = connection.cancellable_session(cancel.CancelToken())
        with contextlib.closing(session.session):
            roles = sorted(auth.get_access(session).role_names)
    except (ks_exceptions.ClientException, ks_exceptions.OptionError,
            OSError, ValueError) as error:
        host.service_user = False
        yield item.failed(
            name, f'Keystone gives no token to the user of [service_user]: '
                  f'{error}.',
            'See that Keystone runs, and correct auth_url and the '
            'credentials in [service_user].')
        return
    if service.ROLE not in roles:
        yield item.warning(
            name, f'The user of [service_user] has the roles '
                  f'{", ".join(roles)}, and not "{service.ROLE}": services '
                  f'do not take it for one of them.',
            f'Give it the role: "openstack role add --user USER --project '
            f'service {service.ROLE}".')
    else:
        yield item.ok(name, f'Keystone gives a token to the user of '
                            f'[service_user], with the roles '
                            f'{", ".join(roles)}')


def answer(host: item.Host) -> Iterator[item.Item]:
    """Check that Glance responds to Nova's service user."""
    name = 'glance'
    if not host.service_user:
        yield _not_asked(name)
        return
    try:
        with _requests() as (requests, server):
            if _is_found(requests):
                yield item.ok(name, f'Glance at {server} responds')
            usage = _usage(requests)
    except Exception as error:
        # Of keystoneauth, glanceclient, requests, Nova, or the socket.
        yield item.failed(
            name, f'Glance does not respond as it should to the user of '
                  f'[service_user]: {_text(error)}.',
            'See that Glance runs, and that [glance] (endpoint_override, '
            'region_name, cafile) and the endpoints in Keystone are right.')
        return
    yield from _quotas(usage)
    yield item.ok('glance-properties', 'properties that Glance protects are '
                                       'not seen by reading: "check --trial" '
                                       'tries to set ours')


def _not_asked(name: str) -> item.Item:
    return item.unknown(
        name, 'Glance was not asked: Nova has no token for its own requests.',
        'Correct [service_user]: see "service-user".')


@contextlib.contextmanager
def _requests() -> Iterator[tuple[ty.Any, str]]:
    """Return a client for requests as Nova's service user, and its server."""
    from nova_snapext import cancel
    from nova_snapext.upload import client
    glance = client.ImageClient(cancel.CancelToken(), NO_IMAGE)
    with contextlib.closing(glance):
        connected = glance.connect(glance.service_context())
        yield (connected.http_client,
               str(getattr(glance, 'api_server', None) or 'its endpoint'))


def _is_found(http_client: ty.Any) -> bool:
    """Make a request that needs a valid token.

    :raises HTTPException: Glance refuses the token, or fails
    """
    http_client.get('/v2/images?limit=1')
    return True


def _usage(http_client: ty.Any) -> dict[str, dict[str, int]]:
    """Return the limits of the project of Nova's service user.

    :returns: none if Glance has no limits, or is older than release 24
    """
    import glanceclient.exc
    try:
        _response, body = http_client.get('/v2/info/usage')
    except (glanceclient.exc.HTTPNotFound, glanceclient.exc.HTTPForbidden):
        return {}
    return ty.cast(dict[str, dict[str, int]], body.get('usage') or {})


def _quotas(usage: dict[str, dict[str, int]]) -> Iterator[item.Item]:
    name = 'glance-quotas'
    if not usage:
        yield item.ok(name, 'Glance shows no quotas of projects')
        return
    yield item.warning(
        name, f'Glance has quotas for projects '
              f'({", ".join(sorted(usage))}): a snapshot fails if that of its '
              f'project is full. Those of other projects are not seen here.',
        '"openstack registered limit list --service glance" lists the '
        'defaults, and "openstack limit list --service glance" the quotas of '
        'single projects.')
    for quota, numbers in sorted(usage.items()):
        limit, used = numbers.get('limit', -1), numbers.get('usage', 0)
        if limit >= 0 and 100 * used >= NEARLY * limit:
            yield item.warning(
                name, f'The quota {quota} of Nova\'s service project is used '
                      f'with {used} of {limit}.')


def properties(host: item.Host) -> Iterator[item.Item]:
    """Create an image without data, with our properties, and delete it.

    Only ``check --trial`` does this. What a crash leaves is in the journal of
    trials.
    """
    from nova_snapext import exception
    name = 'glance-properties'
    if not host.service_user:
        yield _not_asked(name)
        return
    image_id = str(uuid.uuid4())
    try:
        with trial.locked_journal(), \
                _requests() as (http_client, _server), \
                _recorded(image_id) as entry:
            _create(http_client, entry)
            try:
                refused = [*_refused(http_client, f'/v2/images/{image_id}')]
            finally:
                yield from _delete(http_client, entry)
    except exception.JournalLocked:
        yield item.unknown(name, 'Another "nova-snapext check --trial" runs.')
        return
    except exception.JournalFailed as error:
        yield item.failed(name, f'The journal of the trial can\'t be used: '
                                f'{error}')
        return
    except Exception as error:
        # See answer().
        yield item.failed(
            name, f'Glance does not let the user of [service_user] create an '
                  f'image: {_text(error)}.', 'If that is a quota of its '
            'project (413), other projects may have one, too.')
        return
    if refused:
        yield item.warning(
            name, f'Glance refuses properties: {"; ".join(refused)}. Images '
                  f'do not get them, and snapshots succeed without them. For '
                  f'users it may refuse more.',
            'Allow them in Glance\'s property_protection_file.')
    else:
        yield item.ok(name, 'Glance lets the user of [service_user] set all '
                            'properties of snapshots; for users it may '
                            'refuse some')


def _recorded(image_id: str) -> contextlib.AbstractContextManager[ty.Any]:
    """Record an image in the journal before it is created."""
    from nova_snapext import journal
    # There is no instance.
    plan = types.SimpleNamespace(
        context=None, image_id=image_id,
        instance=types.SimpleNamespace(uuid=image_id))
    return journal.new_image(ty.cast(ty.Any, plan), 'trial', True)


def _create(http_client: ty.Any, entry: ty.Any) -> None:
    import glanceclient.exc
    try:
        http_client.post('/v2/images', data={
            'id': entry.image_id, 'name': 'nova-snapext-check',
            'disk_format': 'qcow2', 'container_format': 'bare'})
    except glanceclient.exc.HTTPException as error:
        # After an error of Glance, or of a proxy, it may exist.
        if error.code < 500:
            entry.remove()
        raise


def _delete(http_client: ty.Any, entry: ty.Any) -> Iterator[item.Item]:
    """Delete the image of this check. A failure leaves it in the journal."""
    import glanceclient.exc
    try:
        http_client.delete(f'/v2/images/{entry.image_id}')
    except glanceclient.exc.HTTPNotFound:
        entry.remove()
    except glanceclient.exc.HTTPException as error:
        yield item.failed(
            'glance-properties',
            f'The image {entry.image_id} without data, which this check has '
            f'created, could not be deleted: {_text(error)}.',
            f'Run "openstack image delete {entry.image_id}".')
    else:
        entry.remove()


def _refused(http_client: ty.Any, path: str) -> Iterator[str]:
    """Set each property that snapshots set, and return those refused."""
    import json

    import glanceclient.exc

    from nova_snapext.snapshot import properties as ours
    from nova_snapext.upload import client
    for name in ours.before_freeze(ours.UNKNOWN, NO_IMAGE):
        patch = [{'op': 'add', 'path': f'/{name}', 'value': ours.UNKNOWN}]
        try:
            http_client.patch(path, data=json.dumps(patch),
                              headers=dict(client.PATCH_HEADERS))
        except glanceclient.exc.HTTPException as error:
            yield f'{name} ({_text(error)})'


def _text(error: Exception) -> str:
    return ' '.join(str(error).split()).rstrip('.') or type(error).__name__
