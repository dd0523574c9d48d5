# SPDX-License-Identifier: Apache-2.0
"""The second stage: which strategy takes the snapshot."""

from __future__ import annotations

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
from nova_snapext import plan as planning
from nova_snapext import strategies

CONF = conf.CONF
LOG = logging.getLogger(__name__)

NAMESPACE = 'nova_snapext.strategies'
AUTO = 'auto'

#: A flavor requests a strategy with this extra spec, an image with this
#: property.
EXTRA_SPEC = 'snapext:strategy'
PROPERTY = 'snapext_strategy'

# Characters of a request that errors and the log show.
SANITIZED_LENGTH = 64


@dataclasses.dataclass(frozen=True)
class StrategyRequest:
    """The strategies that a snapshot may use, and who requests them.

    :ivar names: in the order of preference; just ``auto`` for the order of
        [snapext]auto_strategies
    :ivar source: text for errors
    """

    names: tuple[str, ...]
    source: str

    @classmethod
    def parse(cls, text: str, source: str) -> StrategyRequest:
        """Parse ``auto``, or names separated by commas."""
        return cls(tuple(name.strip() for name in text.split(',')), source)

    @property
    def is_auto(self) -> bool:
        return self.names == (AUTO,)

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
    strategy = StrategyRequest.parse(options.strategy, '')
    if not strategy.is_auto:
        _check_names('strategy', strategy.names, available)
    _check_names('auto_strategies', options.auto_strategies or [''], available)
    for option in ('allowed_image_strategies', 'allowed_flavor_strategies'):
        names = [name for name in options[option] if name != AUTO]
        _check_names(option, names, available)


def _check_names(option: str, names: Sequence[str],
                 available: Mapping[str, strategies.Strategy]) -> None:
    unknown = [name for name in names if name not in available]
    if unknown:
        raise exception.StrategyConfigError(
            reason=f'[snapext]{option} names {", ".join(unknown) or "none"}; '
                   f'installed are {", ".join(sorted(available))}')


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
    return StrategyRequest.parse(CONF.snapext.strategy, '[snapext]strategy')


def _check_allowed(instance: objects.Instance, request: StrategyRequest,
                   option: str) -> None:
    allowed = CONF.snapext[option]
    if not set(request.names) <= set(allowed):
        _refuse(instance, request,
                f'[snapext]{option} allows '
                f'{", ".join(allowed) or "no request"}')


def _refuse(instance: objects.Instance, request: StrategyRequest,
            reason: str) -> ty.NoReturn:
    raise exception.StrategyRefused(
        instance=instance.uuid, strategy=str(request),
        source=request.source, reason=reason)


def select(plan: planning.Plan, request: StrategyRequest,
           available: Mapping[str, strategies.Strategy],
           ) -> strategies.Strategy:
    """Return the first requested strategy that supports a plan.

    ``auto`` skips a strategy that disturbs the guest, unless no other one
    supports the plan.

    :param available: strategies by name
    :raises StrategyRefused: none supports it; the error contains the reason
        for each
    """
    reasons = []
    fallback = None
    for name in (CONF.snapext.auto_strategies if request.is_auto
                 else request.names):
        strategy = available.get(name)
        if strategy is None:
            reasons.append(f'{sanitize(name)}: not installed; there are '
                           f'{", ".join(sorted(available))}')
            continue
        reason = _unsupported_reason(strategy, plan)
        if reason is None and request.is_auto:
            reason = strategy.auto_skip_reason(plan)
            fallback = fallback or (strategy if reason else None)
        if reason is None:
            break
        reasons.append(f'{name}: {reason}')
    else:
        strategy = fallback
    if strategy is None:
        _refuse(plan.instance, request, '; '.join(reasons))
    if reasons:
        LOG.info('The snapshot is taken by the strategy %(selected)s, and not '
                 'by %(reasons)s (%(source)s: %(request)s)',
                 {'selected': strategy.name, 'reasons': '; '.join(reasons),
                  'source': request.source, 'request': request},
                 instance=plan.instance)
    LOG.debug('Strategy %(selected)s is selected (%(source)s: %(request)s)',
              {'selected': strategy.name, 'source': request.source,
               'request': request}, instance=plan.instance)
    return strategy


def _unsupported_reason(strategy: strategies.Strategy,
                        plan: planning.Plan) -> str | None:
    if (isinstance(strategy, strategies.FreezingStrategy) and
            plan.image_format not in encode.FORMATS):
        return (f'only Nova\'s own snapshot can create images of the format '
                f'{plan.image_format}')
    return strategy.unsupported_reason(plan)
