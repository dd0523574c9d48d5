# SPDX-License-Identifier: Apache-2.0
"""Power goes at every step of a snapshot.

All combinations of steps and file systems take most of an hour: tox -e power.
The other tests take those in which the most can be lost.
"""

import itertools

from tests.functional.power import base
from tests.functional.power import steps
from tests.functional.power import victim

NOTHING = ()


class EveryStepTestCase(base.PowerTestCase):
    """One test for each step of a snapshot.

    :cvar STRATEGY: the strategy of the snapshots
    :cvar SYNCED: names of the file systems that have just written their logs
        when the power goes, for each test of a step
    :cvar WRITES: whether the guest writes just before, for each test
    :cvar SINCE: name of the first step of the tests that always run; None:
        these tests run only in full
    :cvar UNTIL: name of the last one; None: the last step of all
    """

    STRATEGY = ''
    SYNCED = (NOTHING,)
    WRITES = (False,)
    SINCE = None
    UNTIL = None

    def __init_subclass__(cls):
        super().__init_subclass__()
        found = steps.STEPS.get(cls.STRATEGY, ())
        for number, point in enumerate(found, start=1):
            if base.IN_FULL or point in steps.part(
                    found, cls.SINCE, cls.UNTIL):
                cls.add_tests(number, point)

    @classmethod
    def add_tests(cls, number, point):
        # The journal is always synced.
        all_synced = ((NOTHING, (base.INSTANCES,), (base.LIBVIRT,))
                      if cls.APART else (NOTHING,))
        for synced, writes in itertools.product(
                all_synced if base.IN_FULL else cls.SYNCED,
                (False, True) if base.IN_FULL else cls.WRITES):
            loss = victim.PowerLoss(cls.STRATEGY, point, synced, writes)
            name = '_'.join((
                f'test_at_{number:02}_{point.identifier}', *synced,
                *(['synced'] if synced else []),
                *(['guest_writes'] if writes else [])))

            def test(self, loss=loss):
                self.power_goes(loss)

            setattr(cls, name, test)

    def power_goes(self, loss):
        guest = self.guest()
        self.snapshot_until_power_goes(guest, loss)
        self.restore_power()
        self.assert_nothing_lost(guest)


class ExternalExt4Test(EveryStepTestCase):

    STRATEGY = 'external'
    WRITES = (True,)
    SINCE = steps.PAUSED.name
    UNTIL = steps.GUEST_CONTINUES.name


class ExternalExt4ApartTest(EveryStepTestCase):

    STRATEGY = 'external'
    APART = True
    SYNCED = ((base.LIBVIRT,),)
    SINCE = 'the guest uses its disk again'


class ExternalXfsTest(EveryStepTestCase):

    STRATEGY = 'external'
    KIND = 'xfs'


class ExternalXfsApartTest(EveryStepTestCase):

    STRATEGY = 'external'
    KIND = 'xfs'
    APART = True
    SINCE = 'the overlay is in the journal'


class ColdExt4Test(EveryStepTestCase):

    STRATEGY = 'cold'
    # libvirt has put the backing chain into the definition.
    SINCE = steps.OVERLAY_REMOVED.name
    UNTIL = steps.GUEST_CONTINUES.name


class ColdExt4ApartTest(EveryStepTestCase):

    STRATEGY = 'cold'
    APART = True
    SINCE = 'the overlay has no marker yet'
    # The merge is that of external.
    UNTIL = steps.points.SERVED.name


class ColdXfsTest(EveryStepTestCase):

    STRATEGY = 'cold'
    KIND = 'xfs'


class ColdXfsApartTest(EveryStepTestCase):

    STRATEGY = 'cold'
    KIND = 'xfs'
    APART = True


class InternalExt4Test(EveryStepTestCase):

    STRATEGY = 'internal'


class InternalExt4ApartTest(EveryStepTestCase):

    STRATEGY = 'internal'
    APART = True


class InternalXfsTest(EveryStepTestCase):

    STRATEGY = 'internal'
    KIND = 'xfs'


class InternalXfsApartTest(EveryStepTestCase):

    STRATEGY = 'internal'
    KIND = 'xfs'
    APART = True
    SINCE = 'the snapshot is in the journal'


class BackupExt4Test(EveryStepTestCase):

    STRATEGY = 'backup'


class BackupExt4ApartTest(EveryStepTestCase):

    STRATEGY = 'backup'
    APART = True
    SINCE = 'the backup job has ended'


class BackupXfsTest(EveryStepTestCase):

    STRATEGY = 'backup'
    KIND = 'xfs'


class BackupXfsApartTest(EveryStepTestCase):

    STRATEGY = 'backup'
    KIND = 'xfs'
    APART = True
