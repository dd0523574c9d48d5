# SPDX-License-Identifier: Apache-2.0
"""Which strategy would serve each instance of this host, and why not others.

Nothing is changed: strategies say what they could do.
"""

from __future__ import annotations

from collections.abc import Iterator
import typing as ty

from nova_snapext.cmd.check import item

# Of Nova's element in the definition of each of its guests: see
# LibvirtConfigGuestMetaNovaInstance in nova/virt/libvirt/config.py.
METADATA = 'http://openstack.org/xmlns/libvirt/nova/'


def driver(host: item.Host) -> Iterator[item.Item]:
    """Create Nova's driver as nova-compute does."""
    from nova import objects

    from nova_snapext.cmd import standalone
    from nova_snapext import exception
    name = 'driver-starts'
    if not (host.is_nova and host.libvirt):
        yield item.unknown(name, 'Whether the driver starts, and what serves '
                                 'the guests of this host, needs libvirt, and '
                                 'the rights of Nova\'s user.')
        return
    try:
        objects.register_all()
        host.driver = standalone.create_driver()
    except exception.SnapextError as error:
        yield item.failed(name, str(error))
        return
    except Exception as error:
        yield item.failed(name, f'The driver can\'t be created: '
                                f'{type(error).__name__}: {error}.')
        return
    yield item.ok(name, f'the driver starts, with the strategies '
                        f'{", ".join(sorted(host.driver.strategies))}')


def guests(host: item.Host) -> Iterator[item.Item]:
    """Tell what serves each guest of Nova on this host."""
    from nova_snapext.hypervisor import domain
    if host.driver is None:
        return
    asking = True
    found = False
    for guest in host.driver._host.list_guests(only_running=False):
        wrapped = domain.Domain(guest._domain)
        if not is_of_nova(wrapped):
            continue
        found = True
        instance, asking = _instance(wrapped, asking)
        yield (in_progress(instance) or
               _unless_begun(instance, _of_one(host.driver, instance)))
    if not asking:
        yield item.unknown(
            'conductor', 'Nova\'s conductor does not respond: what flavors '
                         'and images of the guests ask for is not known.',
            'See that RabbitMQ and nova-conductor run.')
    if not found:
        yield item.ok('guests', 'Nova has no guest on this host')


def is_of_nova(guest: ty.Any) -> bool:
    """Return whether a guest is one of Nova's instances."""
    import libvirt
    try:
        return METADATA in guest.get_xml_desc()
    except libvirt.libvirtError:
        return False  # it was deleted at this moment


def _instance(guest: ty.Any, ask: bool) -> tuple[ty.Any, bool]:
    """Return the instance of a guest.

    :param ask: ask Nova
    :returns: the instance, and whether it is worth to ask for the next one
    """
    from nova import context as nova_context
    from nova import exception as nova_exception
    from nova import objects
    import oslo_messaging

    from nova_snapext import plan as planning
    if ask:
        try:
            return objects.Instance.get_by_uuid(
                nova_context.get_admin_context(), guest.uuid,
                expected_attrs=['flavor', 'system_metadata',
                                'numa_topology']), True
        except nova_exception.InstanceNotFound:
            pass
        except oslo_messaging.MessagingException:
            ask = False
    return planning.UnknownInstance(guest.uuid, guest.name), ask


def plan_of(driver: ty.Any, instance: ty.Any) -> ty.Any:
    """Return the plan of a snapshot that nobody takes."""
    from nova import context as nova_context

    from nova_snapext.hypervisor import domain
    from nova_snapext import plan as planning
    guest = domain.get(driver._host, instance)
    disk = planning.find_root_disk(guest, instance)
    return planning.Plan(
        context=nova_context.get_admin_context(), instance=instance,
        guest=guest, running=bool(guest.is_active()), disk=disk,
        image_id='00000000-0000-4000-8000-000000000000',
        image_format=planning.image_format_of(disk),
        image_properties={}, metadata={})


def in_progress(instance: ty.Any) -> item.Item | None:
    """Return what is to say of a guest whose snapshot runs now.

    :returns: None of other guests
    """
    from nova_snapext.snapshot import published
    for snapshot in published.running():
        if snapshot.instance_uuid == instance.uuid:
            return item.ok(
                f'guest {instance.uuid}',
                f'{instance.name}: a snapshot is in progress, by '
                f'{snapshot.strategy or "a strategy to be selected"}; what '
                f'serves the guest is seen after it')
    return None


def _unless_begun(instance: ty.Any, found: item.Item) -> item.Item:
    """Return what was found, unless a snapshot that has just begun is why."""
    if found.status is not item.Status.FAILED:
        return found
    return in_progress(instance) or found


def _of_one(driver: ty.Any, instance: ty.Any) -> item.Item:
    from nova_snapext import exception
    from nova_snapext import plan as planning
    from nova_snapext.snapshot import selection
    name = f'guest {instance.uuid}'
    try:
        plan = plan_of(driver, instance)
        # The flavor of an unknown one is not known.
        request = (selection.request_of_host() if
                   isinstance(instance, planning.UnknownInstance) else
                   selection.request_for(instance, {}))
        selected, others = selection.explain(plan, request, driver.strategies)
    except exception.StrategyRefused as error:
        return item.failed(name, str(error))
    except Exception as error:
        # A snapshot of it would fail with the same.
        return item.failed(name, f'No snapshot is possible: '
                                 f'{str(error).rstrip(".")}.')
    reasons = '; '.join(f'{other}: {reason}'
                        for other, reason in others.items())
    text = f'{instance.name} ({"running" if plan.running else "shut off"})'
    if selected is None:
        return item.failed(
            name, f'{text}: no strategy can take a snapshot, as asked for by '
                  f'{request.source} ({request}). {reasons}.')
    text = f'{text}: {selected.name}'
    if reasons:
        text += f' (others: {reasons})'
    if selected.name == 'native' and request.names != ('native',):
        return item.warning(name, f'{text}. Nova\'s own snapshot stages the '
                                  f'whole disk on this host.')
    return item.ok(name, text)
