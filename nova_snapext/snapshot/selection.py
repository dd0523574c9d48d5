# SPDX-License-Identifier: Apache-2.0
"""The second stage: which strategy takes the snapshot."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import typing as ty

from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
import stevedore

from nova_snapext import conf
from nova_snapext import encode
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import plan as planning
from nova_snapext import reason as reasons
from nova_snapext import space
from nova_snapext import strategies
from nova_snapext.strategies import base
from nova_snapext.strategies import native

CONF = conf.CONF
LOG = logging.getLogger(__name__)

NAMESPACE = 'nova_snapext.strategies'
AUTO = 'auto'

#: A flavor requests a strategy with this extra spec, an image with this
#: property.
EXTRA_SPEC = 'snapext:strategy'
PROPERTY = 'snapext_strategy'

# Names in a request that serves disks in Ceph.
FOR_CEPH = frozenset({AUTO, 'rbd', 'backup', 'native'})

# Characters of a request that errors and the log show.
SANITIZED_LENGTH = 64


@dataclasses.dataclass(frozen=True)
class StrategyRequest:
    """The strategies that a snapshot may use, and who requests them.

    :ivar names: in the order of preference; ``auto`` stands for those of
        [snapext]auto_strategies
    :ivar source: text for errors
    """

    names: tuple[str, ...]
    source: str

    @classmethod
    def parse(cls, text: str, source: str) -> StrategyRequest:
        """Parse names separated by commas."""
        return cls(tuple(name.strip() for name in text.split(',')), source)

    @property
    def is_auto(self) -> bool:
        return self.names == (AUTO,)

    def candidates(self) -> Iterator[tuple[str, bool]]:
        """Return the names of strategies, and whether ``auto`` has each."""
        for name in self.names:
            if name == AUTO:
                yield from ((of_auto, True)
                            for of_auto in CONF.snapext.auto_strategies)
            else:
                yield name, False

    def is_by_auto(self, name: str) -> bool:
        """Return whether ``auto`` has a strategy, before its own name."""
        return next((by_auto for candidate, by_auto in self.candidates()
                     if candidate == name), False)

    def __str__(self) -> str:
        """Return the names in a form that is safe to show and to log."""
        return sanitize(','.join(self.names))


def sanitize(text: str) -> str:
    """Return untrusted text in one printable line of limited length."""
    escaped = text.encode('unicode_escape').decode()
    return (escaped if len(escaped) <= SANITIZED_LENGTH
            else f'{escaped[:SANITIZED_LENGTH]}...')


def load_strategies(
    driver: libvirt_driver.LibvirtDriver,
) -> dict[str, strategies.Strategy]:
    """Load the installed strategies, by name.

    :raises StrategyConfigError: one can't be loaded, or two have the same
        name
    """
    def on_failure(_manager: object, entry_point: ty.Any,
                   error: BaseException) -> None:
        raise exception.StrategyConfigError(
            reason=f'{entry_point.name} ({entry_point.value}) can\'t be '
                   f'loaded: {error}') from error

    loaded: dict[str, strategies.Strategy] = {}
    manager: stevedore.ExtensionManager[strategies.Strategy] = (
        stevedore.ExtensionManager(
            NAMESPACE, on_load_failure_callback=on_failure))
    for extension in manager:
        if extension.name in loaded:
            raise exception.StrategyConfigError(
                reason=f'{extension.name} is installed twice, the second time '
                       f'as {extension.entry_point_target}')
        loaded[extension.name] = extension.plugin(driver)
    LOG.debug('Loaded the strategies %s', ', '.join(sorted(loaded)))
    return loaded


def check_options(available: Mapping[str, strategies.Strategy]) -> None:
    """Check that the options name installed strategies.

    :param available: strategies by name
    :raises StrategyConfigError: a name is unknown, or an option that needs
        one is empty
    """
    options = CONF.snapext
    _check_names('strategy',
                 StrategyRequest.parse(options.strategy, '').names,
                 {AUTO, *available})
    if AUTO in options.auto_strategies:
        raise exception.StrategyConfigError(
            reason=f'[snapext]auto_strategies names {AUTO}, which stands for '
                   f'this list; installed are {_names(available)}')
    _check_names('auto_strategies', options.auto_strategies or [''], available)
    if CONF.libvirt.images_type == 'rbd' and not FOR_CEPH & {
            *StrategyRequest.parse(options.strategy, '').names}:
        LOG.warning('The disks of this host are in Ceph, and each snapshot '
                    'that [snapext]strategy (%(strategy)s) decides is '
                    'refused. Write "%(strategy)s,rbd", or "auto"',
                    {'strategy': options.strategy})
    for option in ('allowed_image_strategies', 'allowed_flavor_strategies'):
        _check_names(option, options[option], {AUTO, *available})


def _check_names(option: str, names: Sequence[str],
                 available: Collection[str]) -> None:
    unknown = _unknown(names, available)
    if unknown:
        raise exception.StrategyConfigError(
            reason=f'[snapext]{option} names {unknown}; installed are '
                   f'{_names(set(available) - {AUTO})}')


def _unknown(names: Sequence[str], available: Collection[str]) -> str:
    """Return the names that are not available, in a form that is safe."""
    if list(names) == ['']:
        return 'none'
    unknown = [name for name in names if name not in available]
    return ', '.join(sanitize(name) or 'an empty name' for name in unknown)


def request_for(instance: objects.Instance,
                properties: Mapping[str, ty.Any]) -> StrategyRequest:
    """Return the request of the image, of the flavor, or of this host.

    :param properties: of the image that the snapshot becomes
    :raises StrategyRefused: the options do not allow this request
    """
    if PROPERTY in properties:
        request = StrategyRequest.parse(
            str(properties[PROPERTY]), f'the image property {PROPERTY}')
        _check_allowed(instance, request, 'allowed_image_strategies')
        return request
    extra_specs = instance.flavor.extra_specs
    if EXTRA_SPEC in extra_specs:
        request = StrategyRequest.parse(
            extra_specs[EXTRA_SPEC], f'its flavor ({EXTRA_SPEC})')
        _check_allowed(instance, request, 'allowed_flavor_strategies')
        return request
    return request_of_host()


def request_of_host() -> StrategyRequest:
    """Return the request of snapshots that nobody else decides."""
    return StrategyRequest.parse(
        CONF.snapext.strategy, 'the configuration ([snapext]strategy)')


def _check_allowed(instance: objects.Instance, request: StrategyRequest,
                   option: str) -> None:
    allowed = CONF.snapext[option]
    if not set(request.names) <= set(allowed):
        names = f'it names {_unknown(request.names, allowed)}, and '
        allows = f'allows {", ".join(allowed) or "no request"}'
        _refuse(instance, request, reasons.UserReason(
            f'{names}[snapext]{option} {allows}',
            f'{names}this cloud {allows}'))


def _check_known(instance: objects.Instance, request: StrategyRequest,
                 available: Mapping[str, strategies.Strategy]) -> None:
    # A name that is misspelled must not leave the snapshot to the others.
    unknown = _unknown(request.names, {AUTO, *available})
    if unknown:
        _refuse(instance, request,
                f'it names {unknown}; there are {_names({AUTO, *available})}')


def _refuse(instance: objects.Instance, request: StrategyRequest,
            reason: str, found: Mapping[str, str] | None = None,
            remedy: str = '') -> ty.NoReturn:
    """Refuse a request.

    :param found: the reason of each strategy; None if users may read the
        whole reason
    :param remedy: what to write instead, also for users; empty if unknown
    """
    for_users = (_text_for_users(found) if found is not None else
                 getattr(reason, 'for_users', reason))
    raise exception.StrategyRefused(
        found or {}, instance=instance.uuid, strategy=str(request),
        source=request.source, reason=f'{reason}{remedy}',
        user_reason=f'{for_users}{remedy}')


def select(plan: planning.Plan, request: StrategyRequest,
           available: Mapping[str, strategies.Strategy],
           failed: Mapping[str, exception.SnapextError] | None = None,
           ) -> strategies.Strategy:
    """Return the first requested strategy that supports a plan.

    ``auto`` skips a strategy that disturbs the guest, unless no other one
    supports the plan.

    :param available: strategies by name
    :param failed: why strategies failed that were tried, by name; they are
        not selected again
    :raises StrategyRefused: a name is unknown, or none supports the plan; the
        error contains the reason for each
    """
    _check_known(plan.instance, request, available)
    found = _Search(plan, available, failed or {})
    strategy = found.first(request)
    if strategy is None:
        _refuse(plan.instance, request, _text(found.reasons), found.reasons,
                _ceph_remedy(plan, request))
    told = {name: reason for name, reason in found.reasons.items()
            if not isinstance(reason, reasons.OtherStorageReason)}
    if told:
        # A strategy that failed has cost the guest and the operator something.
        LOG.log(logging.WARNING if failed else logging.INFO,
                'The snapshot is taken by the strategy %(selected)s, and not '
                'by %(reasons)s (%(source)s: %(request)s)',
                {'selected': strategy.name, 'reasons': _text(told),
                 'source': request.source, 'request': request},
                instance=plan.instance)
    LOG.debug('Strategy %(selected)s is selected (%(source)s: %(request)s)',
              {'selected': strategy.name, 'source': request.source,
               'request': request}, instance=plan.instance)
    return strategy


def explain(plan: planning.Plan, request: StrategyRequest,
            available: Mapping[str, strategies.Strategy],
            ) -> tuple[strategies.Strategy | None, dict[str, str]]:
    """Return what :func:`select` would return, and why not the others.

    :returns: the strategy, None if none supports the plan; and a reason for
        each other one, by name
    :raises StrategyRefused: a name is unknown
    """
    _check_known(plan.instance, request, available)
    search = _Search(plan, available, {})
    selected = search.first(request)
    reasons_ = dict(search.reasons)
    for name in sorted(available.keys() - reasons_.keys()):
        strategy = available[name]
        if strategy is not selected:
            reasons_[name] = search.reason(strategy) or 'possible, too'
    return selected, reasons_


def _ceph_remedy(plan: planning.Plan, request: StrategyRequest) -> str:
    """Return what to write for a disk in Ceph; empty if that was written."""
    if ceph.image_of(plan.disk) is None or {'rbd', AUTO} & {*request.names}:
        return ''
    return f'. For a disk in Ceph write "{request},rbd", or "auto"'


def select_after(plan: planning.Plan, request: StrategyRequest,
                 available: Mapping[str, strategies.Strategy],
                 failed: Mapping[str, exception.SnapextError],
                 ) -> strategies.Strategy:
    """Return the next strategy, after others have failed.

    :param failed: why, by name; the last one failed last. It is empty after
        Nova's direct snapshot alone was refused
    :raises SnapextError: there is no other one. It is the last failure; if
        others were requested too, it contains their reasons
    """
    if not failed:
        return select(plan, request, available)
    *_, (name, error) = failed.items()
    found: Mapping[str, str] = {
        failed_name: str(failure) for failed_name, failure in failed.items()}
    if not isinstance(error, exception.FreezeFailedForGood):
        try:
            return select(plan, request, available, failed)
        except exception.StrategyRefused as refused:
            found = refused.reasons
    others = {other: reason for other, reason in found.items()
              if other != name}
    if others:
        error.append(f'No other strategy can take the snapshot either: '
                     f'{_text(others)}')
    raise error


class _Search:
    """The search for a strategy that supports a plan.

    :ivar reasons: why each strategy that was found before is not selected,
        by name
    """

    def __init__(self, plan: planning.Plan,
                 available: Mapping[str, strategies.Strategy],
                 failed: Mapping[str, exception.SnapextError]):
        self._plan = plan
        self._available = available
        self._failed = failed
        self.reasons: dict[str, str] = {}

    def first(self, request: StrategyRequest) -> strategies.Strategy | None:
        fallbacks: dict[str, strategies.Strategy] = {}
        for name, by_auto in request.candidates():
            if name in fallbacks and not by_auto:
                # It is requested by its name, too.
                del self.reasons[name]
                return fallbacks[name]
            if name in self.reasons:
                continue
            strategy = self._available.get(name)
            reason = (f'not installed; there are {_names(self._available)}'
                      if strategy is None else self.reason(strategy))
            if strategy is not None and reason is None and by_auto:
                reason = strategy.auto_skip_reason(self._plan)
                if reason is not None:
                    fallbacks[name] = strategy
            if reason is None:
                return strategy
            self.reasons[name] = reason
        for name, strategy in fallbacks.items():
            del self.reasons[name]
            return strategy
        return None

    def reason(self, strategy: strategies.Strategy) -> str | None:
        """Return why a strategy does not support the plan."""
        if strategy.name in self._failed:
            return str(self._failed[strategy.name])
        if isinstance(strategy, strategies.FreezingStrategy):
            if self._plan.image_format not in encode.FORMATS:
                return reasons.UserReason(
                    f'only Nova\'s own snapshot can create images of the '
                    f'format {self._plan.image_format}')
        else:
            reason = self._unsafe_reason()
            if reason is not None:
                return reason
        reason = base.find_reason(self._plan, strategy.unsupported_reason)
        if reason is None and strategy.stops_guest(self._plan):
            reason = self._stop_reason()
        return reason

    def _unsafe_reason(self) -> str | None:
        """Return why Nova's own snapshot can't replace another strategy."""
        if self._has(reasons.UnsafeDiskReason):
            return ('Nova\'s own snapshot would open the disk, too, although '
                    'its header is not as expected')
        if not native.may_be_direct(self._plan) and any(
                space.is_same_file_system(
                    path, CONF.libvirt.snapshots_directory)
                for path in self._paths_without_space()):
            return reasons.UserReason(
                'Nova\'s own snapshot needs even more free space')
        return None

    def _paths_without_space(self) -> Iterator[str]:
        for reason in self.reasons.values():
            if isinstance(reason, reasons.NoSpaceReason):
                yield reason.path
        for error in self._failed.values():
            if isinstance(error, exception.InsufficientSpace):
                yield error.kwargs['path']

    def _has(self, kind: type[str]) -> bool:
        return any(isinstance(reason, kind)
                   for reason in self.reasons.values())

    def _stop_reason(self) -> str | None:
        for name, error in self._failed.items():
            if isinstance(error, exception.GuestStoodStill):
                return (f'it would stop the guest again, which stood still '
                        f'for {name} already')
        return None


def _names(names: Iterable[str]) -> str:
    return ', '.join(sorted(names))


def _text(found: Mapping[str, str]) -> str:
    return '; '.join(f'{name}: {reason}' for name, reason in found.items())


def _text_for_users(found: Mapping[str, str]) -> str:
    """Return the reasons that users may read, each one once: it is short."""
    names: dict[str, list[str]] = {}
    for name, reason in found.items():
        names.setdefault(reasons.for_users(reason), []).append(name)
    return '; '.join(f'{", ".join(same)}: {reason}'
                     for reason, same in names.items())
