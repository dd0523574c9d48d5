# SPDX-License-Identifier: Apache-2.0
"""Medians, spreads and ratios of what was measured."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import statistics


def summary(values: Iterable[float | None]) -> dict[str, float] | None:
    """Give median and spread of what was measured in the rounds.

    :param values: None where a round has no such value
    :returns: median, least, most, and the number of rounds; None if there
        is no value at all
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {'median': statistics.median(known), 'min': min(known),
            'max': max(known), 'rounds': len(known)}


def summaries(runs: Sequence[Mapping[str, float | None]]
              ) -> dict[str, dict[str, float]]:
    """Summarize every quantity of a contestant's runs.

    :param runs: of each round, its quantities by name
    """
    names = dict.fromkeys(name for run in runs for name in run)
    found = {name: summary(run.get(name) for run in runs) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def ratio(value: float | None, to: float | None) -> float | None:
    """Divide, where both are known and it makes sense."""
    if value is None or not to:
        return None
    return value / to


def verdict(value: float | None, bar: float, at_least: bool = False) -> str:
    """Say whether a bar is reached.

    :param at_least: whether more is better
    """
    if value is None:
        return 'not measured'
    reached = value >= bar if at_least else value <= bar
    return 'reached' if reached else 'missed'
