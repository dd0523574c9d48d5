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
        self.faults_of_others = {
            'the image is deleted': self.delete_image,
            'libvirtd is killed': self.restart_libvirtd,
            'Glance is restarted': self.restart_glance,
            'nothing happens': lambda image: None,
        }

    def test_nothing_is_left_and_nothing_lost(self):
        print(f'Seed {SEED}, {SECONDS:.0f} seconds', flush=True)
        rounds = collections.Counter()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            self.change_guest()
            fault = self.random.choice([
                'nova-compute is killed', 'an error is raised',
                *self.faults_of_others])
            rounds[fault] += 1
            self.one(rounds.total(), fault)
        self.assert_usable()
        print(f'Seed {SEED}: {rounds.total()} snapshots: {dict(rounds)}',
              flush=True)

    def change_guest(self):
        """Take a strategy, and a guest that it can serve."""
        self.CASE = self.random.choice([
            case for case in points.CASES if case is not points.NATIVE])
        status = servers.show(self.client, self.server)['status']
        if self.CASE.running and status == 'SHUTOFF':
            self.action(self.server, 'os-start', 'ACTIVE')
            self.assert_boots_with_all()
        elif not self.CASE.running and status == 'ACTIVE':
            self.action(self.server, 'os-stop', 'SHUTOFF')

    def one(self, number, fault):
        point = self.random.choice(self.CASE.points)
        if fault != 'nova-compute is killed':
            point = self.random.choice([
                point for point in self.CASE.points
                if point.moment != points.DURING])
        what = (f'Seed {SEED}, snapshot {number}, {self.CASE.strategy} of a '
                f'guest that is {self.CASE.guest}: {fault} when {point.name}')
        print(what, flush=True)
        before = self.standing()
        try:
            if fault == 'nova-compute is killed':
                image, _ = self.ask_and_await_death(point)
                acknowledged = self.await_writes(point)
                compute.start(self.state)
            else:
                image = self.ask_and_disturb(fault, point)
                self.assert_snapshot_works(before.acknowledged)
                acknowledged = self.last_record(self.server)
            self.assert_healed(before, image, acknowledged)
        except Exception as failure:
            raise AssertionError(f'{what}: {failure}') from failure
        finally:
            self.faults.disarm()
        # Not only at the end: there are many.
        self.client.delete('glance', f'/images/{image}', missing_ok=True)

    def ask_and_disturb(self, fault, point):
        """Have something happen at a point, and await the snapshot's end."""
        if fault == 'an error is raised':
            self.faults.arm(point, 'raise')
            image = self.ask()
        else:
            self.faults.arm(point, 'wait')
            image = self.ask()
            self.faults.await_act(point, e2e.SNAPSHOT_TIMEOUT)
            self.faults_of_others[fault](image)
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
