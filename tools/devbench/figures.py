# SPDX-License-Identifier: Apache-2.0
"""Medians, spreads and ratios of measured values."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import statistics


def summary(values: Iterable[float | None]) -> dict[str, float] | None:
    """Return median and spread of the values of all rounds.

    :param values: None where a round has no such value
    :returns: median, minimum, maximum, and number of rounds; None if there
        is no value
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {'median': statistics.median(known), 'min': min(known),
            'max': max(known), 'rounds': len(known)}


def summaries(runs: Sequence[Mapping[str, float | None]]
              ) -> dict[str, dict[str, float]]:
    """Summarize each quantity of a contestant's runs.

    :param runs: the quantities of each round, by name
    """
    names = dict.fromkeys(name for run in runs for name in run)
    found = {name: summary(run.get(name) for run in runs) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def ratio(value: float | None, to: float | None) -> float | None:
    """Return the ratio, or None if a value is unknown or the divisor is 0."""
    if value is None or not to:
        return None
    return value / to


def verdict(value: float | None, bar: float, at_least: bool = False) -> str:
    """Return whether a bar is reached, as text.

    :param at_least: whether more is better
    """
    if value is None:
        return 'not measured'
    reached = value >= bar if at_least else value <= bar
    return 'reached' if reached else 'missed'
