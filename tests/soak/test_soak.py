# SPDX-License-Identifier: Apache-2.0

import collections
import os
import random
import time

from devcloud import cloud
from devcloud import compute
from devcloud import servers
from devcloud import wait

from tests.e2e import base as e2e
from tests.faults import base
from tests.faults import points

SECONDS = float(os.environ.get('SNAPEXT_SOAK_SECONDS') or 3600)
SEED = int(os.environ.get('SNAPEXT_SOAK_SEED') or
           random.SystemRandom().randrange(10**6))


class SoakTest(base.FaultTestCase):

    CASE = points.BACKUP

    def setUp(self):
        super().setUp()
        self.random = random.Random(SEED)
        self.external_faults = {
            'the image is deleted': self.delete_image,
            'libvirtd is killed': self.restart_libvirtd,
            'Glance is restarted': self.restart_glance,
            'nothing happens': lambda image: None,
        }

    def test_random_faults_leave_nothing_and_lose_nothing(self):
        print(f'Seed {SEED}, {SECONDS:.0f} seconds', flush=True)
        rounds = collections.Counter()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            self.change_guest()
            fault = self.random.choice([
                'nova-compute is killed', 'an error is raised',
                *self.external_faults])
            rounds[fault] += 1
            self.run_round(rounds.total(), fault)
        self.assert_usable()
        print(f'Seed {SEED}: {rounds.total()} snapshots: {dict(rounds)}',
              flush=True)

    def change_guest(self):
        """Select a case at random, and bring the guest into its state."""
        self.CASE = self.random.choice([
            case for case in points.CASES if case is not points.NATIVE])
        status = servers.show(self.client, self.server)['status']
        if self.CASE.running and status == 'SHUTOFF':
            self.action(self.server, 'os-start', 'ACTIVE')
            self.assert_boots_with_all()
        elif not self.CASE.running and status == 'ACTIVE':
            self.action(self.server, 'os-stop', 'SHUTOFF')

    def run_round(self, number, fault):
        point = self.random.choice(self.CASE.points)
        if fault != 'nova-compute is killed':
            point = self.random.choice([
                point for point in self.CASE.points
                if point.moment != points.DURING])
        description = (f'Seed {SEED}, snapshot {number}, '
                       f'{self.CASE.strategy} of a {self.CASE.guest} guest: '
                       f'{fault} at "{point.name}"')
        print(description, flush=True)
        before = self.server_state()
        try:
            if fault == 'nova-compute is killed':
                image, _ = self.snapshot_until_killed(point)
                acknowledged = self.await_writes(point)
                compute.start(self.state)
            else:
                image = self.snapshot_with_fault(fault, point)
                self.assert_snapshot_works(before.acknowledged)
                acknowledged = self.last_record(self.server)
            self.assert_recovered(before, image, acknowledged)
        except Exception as failure:
            raise AssertionError(f'{description}: {failure}') from failure
        finally:
            self.faults.disarm()
        # Now, and not at the end of the test: there are many images.
        self.client.delete('glance', f'/images/{image}', missing_ok=True)

    def snapshot_with_fault(self, fault, point):
        """Cause a fault at a point of a snapshot, and wait for its end.

        :returns: id of the image
        """
        if fault == 'an error is raised':
            self.faults.arm(point, 'raise')
            image = self.request_snapshot()
        else:
            self.faults.arm(point, 'wait')
            image = self.request_snapshot()
            self.faults.await_fault(point, e2e.SNAPSHOT_TIMEOUT)
            self.external_faults[fault](image)
            self.faults.disarm()
        wait.until('the end of the snapshot',
                   lambda: self.task_state() is None, e2e.SNAPSHOT_TIMEOUT)
        return image

    def delete_image(self, image):
        self.client.delete('glance', f'/images/{image}')

    def restart_libvirtd(self, _image):
        self.host.kill()
        self.host.start()

    def restart_glance(self, _image):
        cloud.restart(self.state, 'glance')
