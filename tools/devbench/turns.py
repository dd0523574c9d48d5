# SPDX-License-Identifier: Apache-2.0
"""In which order contestants take their turns."""

from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import TypeVar

Contestant = TypeVar('Contestant')
Group = TypeVar('Group', bound=Hashable)


def rotated(items: Sequence[Contestant], by: int) -> list[Contestant]:
    """Begin a sequence at another of its items."""
    if not items:
        return []
    by %= len(items)
    return [*items[by:], *items[:by]]


def rounds(groups: dict[Group, Sequence[Contestant]], count: int
           ) -> Iterator[tuple[int, Group, Contestant]]:
    """Give all turns: every contestant once in each round.

    What a group needs is expensive to change, so its contestants follow each
    other. Each round begins with another group, and each group with another
    of its contestants, so that none always comes first, or always after the
    same one.

    :param groups: what needs the same, by what it needs
    :param count: how many rounds
    :returns: number of the round from 0 on, group and contestant
    """
    for number in range(count):
        for group in rotated(list(groups), number):
            # A group's order also changes when all groups were first once.
            for contestant in rotated(groups[group], number):
                yield number, group, contestant


def grouped(contestants: Iterable[Contestant], need: object
            ) -> dict[Hashable, list[Contestant]]:
    """Put together what needs the same.

    :param need: function that gives what a contestant needs
    """
    groups: dict[Hashable, list[Contestant]] = {}
    for one in contestants:
        groups.setdefault(need(one), []).append(one)  # type: ignore
    return groups
