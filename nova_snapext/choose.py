# SPDX-License-Identifier: Apache-2.0
"""The second stage: the strategy that a snapshot is taken by."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import typing as ty

from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
import stevedore

from nova_snapext import conf
from nova_snapext import encode
from nova_snapext import exception
from nova_snapext import freeze
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

NAMESPACE = 'nova_snapext.strategies'
AUTO = 'auto'

#: By which a flavor asks, and an image.
EXTRA_SPEC = 'snapext:strategy'
PROPERTY = 'snapext_strategy'

# Characters of a wish that are shown.
SHOWN_LENGTH = 64


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is asked for, and by whom.

    :ivar text: ``auto``, or names of strategies in the order of preference,
        separated by commas
    :ivar asker: in words that go into errors
    """

    text: str
    asker: str

    @property
    def is_auto(self) -> bool:
        return self.text.strip() == AUTO

    @property
    def names(self) -> list[str]:
        if self.is_auto:
            return CONF.snapext.preference
        return [name.strip() for name in self.text.split(',')]


def load_strategies(
    driver: libvirt_driver.LibvirtDriver,
) -> dict[str, freeze.Strategy]:
    """Load the strategies that are installed, by name.

    :raises StrategyError: one can't be loaded, or two have the same name
    """
    def failed(_manager: object, entry_point: ty.Any,
               error: BaseException) -> None:
        raise exception.StrategyError(
            reason=f'{entry_point.name} ({entry_point.value}) can\'t be '
                   f'loaded: {error}') from error

    strategies: dict[str, freeze.Strategy] = {}
    manager: stevedore.ExtensionManager[freeze.Strategy] = (
        stevedore.ExtensionManager(
            NAMESPACE, on_load_failure_callback=failed))
    for extension in manager:
        if extension.name in strategies:
            raise exception.StrategyError(
                reason=f'{extension.name} is there twice, the second time as '
                       f'{extension.entry_point_target}')
        strategies[extension.name] = extension.plugin(driver)
    return strategies


def check_options(strategies: Mapping[str, freeze.Strategy]) -> None:
    """Check that the options name strategies that are installed.

    :raises StrategyError: one does not
    """
    for option in ('preference', 'requestable', 'strategy'):
        value = getattr(CONF.snapext, option)
        names = (Wish(value, '').names if isinstance(value, str)
                 else [name for name in value if name != AUTO or
                       option == 'preference'])
        unknown = [name for name in names if name not in strategies]
        if unknown or (not names and option != 'requestable'):
            raise exception.StrategyError(
                reason=f'[snapext]{option} names '
                       f'{", ".join(unknown) or "none"}; there are '
                       f'{", ".join(sorted(strategies))}')


def wish(instance: objects.Instance,
         properties: Mapping[str, ty.Any]) -> Wish:
    """Find out what is asked for: by the request, the flavor, or the host.

    :param properties: of the image that the snapshot becomes
    :raises StrategyRefused: it may not be asked for
    """
    if PROPERTY in properties:
        asked = Wish(str(properties[PROPERTY]),
                     f'the image property {PROPERTY}')
        names = [AUTO] if asked.is_auto else asked.names
        if not set(names) <= set(CONF.snapext.requestable):
            _refuse(instance, asked, '[snapext]requestable allows ' + (
                ', '.join(CONF.snapext.requestable) or 'no request'))
        return asked
    extra_specs = instance.flavor.extra_specs
    if EXTRA_SPEC in extra_specs:
        asked = Wish(extra_specs[EXTRA_SPEC], f'its flavor ({EXTRA_SPEC})')
        if not CONF.snapext.flavors_may_ask:
            _refuse(instance, asked,
                    '[snapext]flavors_may_ask does not allow it')
        return asked
    return Wish(CONF.snapext.strategy, '[snapext]strategy')


def shown(text: str) -> str:
    """Give what somebody asked for as it can be shown and logged.

    In one line, and not longer than a name may be.
    """
    escaped = text.encode('unicode_escape').decode()
    return (escaped if len(escaped) <= SHOWN_LENGTH
            else f'{escaped[:SHOWN_LENGTH]}...')


def _refuse(instance: objects.Instance, asked: Wish,
            reason: str) -> ty.NoReturn:
    raise exception.StrategyRefused(
        instance=instance.uuid, strategy=shown(asked.text), asker=asked.asker,
        reason=reason)


def choose(plan: planning.Plan, asked: Wish,
           strategies: Mapping[str, freeze.Strategy]) -> freeze.Strategy:
    """Take the first strategy of a wish that can serve a plan.

    :raises StrategyRefused: none can; the reason says why, for each
    """
    reasons = []
    reluctant = None
    for name in asked.names:
        strategy = strategies.get(name)
        if strategy is None:
            reasons.append(f'{shown(name)}: there is none of this name, but '
                           f'{", ".join(sorted(strategies))}')
            continue
        reason = _reason_against(strategy, plan)
        if reason is None and asked.is_auto:
            reason = strategy.reason_against_unasked(plan)
            reluctant = reluctant or (strategy if reason else None)
        if reason is None:
            break
        reasons.append(f'{name}: {reason}')
    else:
        # Better one with a price than none.
        strategy = reluctant
    if strategy is None:
        _refuse(plan.instance, asked, '; '.join(reasons))
    if reasons:
        LOG.info('The snapshot is taken by the strategy %(chosen)s, and not '
                 'by %(reasons)s (%(asker)s: %(text)s)',
                 {'chosen': strategy.name, 'reasons': '; '.join(reasons),
                  'asker': asked.asker, 'text': shown(asked.text)},
                 instance=plan.instance)
    return strategy


def _reason_against(strategy: freeze.Strategy,
                    plan: planning.Plan) -> str | None:
    if (isinstance(strategy, freeze.FreezingStrategy) and
            plan.image_format not in encode.FORMATS):
        return f'images of the format {plan.image_format} are Nova\'s to make'
    return strategy.reason_against(plan)
