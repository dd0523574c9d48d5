# SPDX-License-Identifier: Apache-2.0
"""The image of a snapshot in Ceph, made inside Ceph.

As Nova's own direct snapshot does it (Rbd.direct_snapshot in
nova/virt/libvirt/imagebackend.py): the snapshot is cloned into Glance's pool,
the clone flattened, and Glance told where it is. Unlike Nova's, the guest's
filesystems can be frozen for the point in time, the copy shows its progress
and can be cancelled, nothing is left of it after any failure, and the disk is
streamed from the same snapshot if Glance refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
import typing as ty

from nova import context as nova_context
from nova import exception as nova_exception
from nova.storage import rbd_utils
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging

from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.resources import rbd_clone
from nova_snapext import upload
from nova_snapext.upload import location

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Glance's role of users that may add locations since release 29
# (glance/api/v2/images.py, add_location).
SERVICE_ROLE = 'service'


def make_image(driver: libvirt_driver.LibvirtDriver, plan: planning.Plan,
               snapshot: ceph.SnapSpec, attributes: dict[str, ty.Any],
               described: Mapping[str, str | None],
               entry: journal.JournalEntry, token: cancel.CancelToken,
               on_progress: upload.OnProgress) -> bool:
    """Make an image inside Ceph, if that is possible.

    :param snapshot: where the frozen disk is
    :param attributes: those that the image's data depends on
    :param described: properties of the image that describe the snapshot
    :returns: whether the image is made. If not, nothing is left of it, and
        the disk has to be streamed
    :raises ReleaseFailed: it is not made, and the clone is left
    :raises ImageNotFound: the image was deleted
    """
    try:
        image = DirectImage(
            driver, plan, snapshot, ceph.size_of(snapshot), entry, token,
            on_progress)
        with token.prefer_cause():
            image.check()
            # Glance would overwrite later changes with what it has read when
            # it takes over the location.
            with upload.GlanceImage(
                    plan.context, plan.image_id, token) as glance_image:
                glance_image.update_metadata(attributes, described)
            image.make()
    except exception.CephError as error:
        LOG.warning('The root disk is streamed: %s', error,
                    instance=plan.instance)
        return False
    except exception.DirectImageRefused as refused:
        LOG.info('The root disk is streamed: %s', refused,
                 instance=plan.instance)
        return False
    return True


class DirectImage:
    """The image of one snapshot, made inside Ceph.

    :param snapshot: where the frozen disk is
    :param size: of the disk, in bytes
    :param entry: the snapshot's entry in the journal
    :param token: its cancellation ends the copy within seconds
    :param on_progress: called with the number of bytes that are in the image,
        and the total
    """

    def __init__(self, driver: libvirt_driver.LibvirtDriver,
                 plan: planning.Plan, snapshot: ceph.SnapSpec, size: int,
                 entry: journal.JournalEntry, token: cancel.CancelToken,
                 on_progress: upload.OnProgress):
        self._image_api = driver._image_api
        self._plan = plan
        self._snapshot = snapshot
        self._size = size
        self._entry = entry
        self._token = token
        self._on_progress = on_progress
        self._pool = ''

    def check(self) -> None:
        """Check all that can be known before anything is created.

        :raises DirectImageRefused: it is known that it can't end well
        """
        reason = unsupported_reason(self._plan) or self._glance_reason()
        if reason is not None:
            raise self._refused(reason)
        self._pool = self._find_pool()

    def make(self) -> None:
        """Make the image after its check, and have Glance take it over.

        :raises DirectImageRefused: it is not possible; nothing is left, and
            the disk can be streamed
        :raises ReleaseFailed: it is not possible, and the clone is left
        :raises ImageNotFound: the image was deleted
        """
        clone = rbd_clone.RbdClone(
            self._image_api, self._plan,
            ceph.ImageSpec(self._pool, self._plan.image_id))
        with journal.ReleaseStack(self._entry) as stack:
            self._token.raise_if_cancelled()
            stack.add(clone)
            try:
                url = self._fill(clone)
                self._register(clone, url)
            except (exception.CephError,
                    exception.LocationRefused) as error:
                raise self._refused(str(error)) from error
            # From here on the image is the only one that has the data.
            stack.mark_released(clone)

    def _find_pool(self) -> str:
        """Return the pool that Glance has its images in.

        :raises DirectImageRefused: it is not known
        """
        try:
            pool = (ceph.parent_pool(self._snapshot.image) or
                    self._pool_of_base_image() or
                    CONF.snapext.rbd_image_pool)
        except exception.CephError as error:
            raise self._refused(str(error)) from error
        if not pool:
            raise self._refused(
                'the root disk is no clone, the image that the instance was '
                'booted from is not in this cluster, and '
                '[snapext]rbd_image_pool is not set')
        return pool

    def _glance_reason(self) -> str | None:
        """Return why Glance would refuse the location; None if not known."""
        if _is_service(self._plan.context):
            return None
        with self._located() as image:
            try:
                if not image.needs_service():
                    return None
            except (*upload.CLIENT_ERRORS, AttributeError, KeyError,
                    TypeError) as error:
                # No JSON, or another one.
                self._token.raise_if_cancelled()
                return f'Glance does not tell the versions of its API: {error}'
        return ('Nova sends no service token, and Glance lets only services '
                'add a location. Set [service_user]send_service_user_token, '
                'with a user that has the role "service"')

    def _located(self) -> location.LocatedImage:
        return location.LocatedImage(
            self._image_api, self._plan.context, self._plan.image_id,
            self._token)

    def _pool_of_base_image(self) -> str | None:
        """Return the pool of the image that the instance was booted from."""
        try:
            image = self._image_api.get(
                self._plan.context, self._plan.instance.image_ref,
                include_locations=True)
        except Exception as error:
            # As in Nova: the image may be deleted, or be none of the user's.
            LOG.debug('The image that the instance was booted from can\'t be '
                      'read: %s', error, instance=self._plan.instance)
            return None
        cluster = ceph.cluster_id(self._snapshot.image.pool)
        driver = rbd_utils.RBDDriver(pool=self._snapshot.image.pool)
        for found in image.get('locations', []):
            try:
                fsid, pool, _name, _snapshot = driver.parse_url(found['url'])
            except nova_exception.ImageUnacceptable:
                continue
            if fsid == cluster:
                return str(pool)
        return None

    def _fill(self, clone: rbd_clone.RbdClone) -> str:
        """Create the clone, and copy the data into it.

        :returns: its location, in Glance's words
        :raises CephError: a step fails
        """
        clone.create(self._snapshot)
        self._token.raise_if_cancelled()
        clone.flatten(self._token, self._report)
        # librbd does not report the last objects.
        self._report(1, 1)
        finished = ceph.finish_image(clone.spec)
        cluster = ceph.cluster_id(clone.spec.pool)
        return f'rbd://{cluster}/{finished.image}/{finished.name}'

    def _register(self, clone: rbd_clone.RbdClone, url: str) -> None:
        """Have Glance take over the clone.

        :raises LocationRefused: Glance does not
        """
        self._token.raise_if_cancelled()
        clone.set_offered(True)
        with self._located() as image:
            try:
                image.add(url)
                verified = image.wait_until_active(self._size)
            except exception.LocationRefused:
                clone.set_offered(False)
                raise
        LOG.info('Image %(image)s was made inside Ceph, as %(spec)s%(digest)s',
                 {'image': self._plan.image_id, 'spec': clone.spec,
                  'digest': ('' if verified else
                             '. Glance has no digest of it')},
                 instance=self._plan.instance)

    def _report(self, done: int, total: int) -> None:
        self._on_progress(self._size * done // max(total, 1), self._size)

    def _refused(self, reason: str) -> exception.DirectImageRefused:
        return exception.DirectImageRefused(
            instance=self._plan.instance.uuid, reason=reason)


def unsupported_reason(plan: planning.Plan) -> str | None:
    """Return what is known of a plan to prevent an image made inside Ceph.

    It asks neither Ceph nor Glance.
    """
    if plan.image_format != 'raw':
        return (f'the image has the format {plan.image_format}, and Ceph can '
                f'only make raw images')
    return None


def _is_service(context: nova_context.RequestContext) -> bool:
    """Return whether Glance takes a request for one of a service."""
    return (CONF.service_user.send_service_user_token or
            SERVICE_ROLE in (context.roles or []))
