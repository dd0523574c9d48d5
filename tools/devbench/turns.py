# SPDX-License-Identifier: Apache-2.0
"""The order of the contestants' turns."""

from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import TypeVar

Contestant = TypeVar('Contestant')
Group = TypeVar('Group', bound=Hashable)


def rotated(items: Sequence[Contestant], by: int) -> list[Contestant]:
    """Return a sequence, rotated to start at another item."""
    if not items:
        return []
    by %= len(items)
    return [*items[by:], *items[:by]]


def rounds(groups: dict[Group, Sequence[Contestant]], count: int
           ) -> Iterator[tuple[int, Group, Contestant]]:
    """Return all turns: each contestant has one turn in each round.

    The conditions of a group are expensive to change, so its contestants
    follow each other. Each round starts with another group, and each group
    with another contestant, so that no contestant is always the first, or
    always after the same one.

    :param groups: contestants by their conditions
    :param count: number of rounds
    :returns: number of the round, starting with 0; group; and contestant
    """
    for number in range(count):
        for group in rotated(list(groups), number):
            # Rotate by the round: a group's order changes in each round.
            for contestant in rotated(groups[group], number):
                yield number, group, contestant


def grouped(contestants: Iterable[Contestant], need: object
            ) -> dict[Hashable, list[Contestant]]:
    """Group the contestants by their conditions.

    :param need: function that returns the conditions of a contestant
    """
    groups: dict[Hashable, list[Contestant]] = {}
    for one in contestants:
        groups.setdefault(need(one), []).append(one)  # type: ignore
    return groups
