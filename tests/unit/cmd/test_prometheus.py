# SPDX-License-Identifier: Apache-2.0

from oslotest import base
from prometheus_client import parser

from nova_snapext.cmd import prometheus

SNAPSHOT = {
    'instance_uuid': 'u', 'image_id': 'i', 'strategy': 'backup',
    'began_at': '2026-01-01T00:00:00.5', 'state': 'running',
    'phase': 'uploading', 'sent': 10, 'size': 100, 'rate': None,
    'seconds_left': None, 'on_host': [
        {'kind': 'scratch', 'bytes': 4096}, {'kind': 'scratch', 'bytes': 1}]}
STATUS = {'locked': True, 'snapshots': [], 'images': [], 'unusable': [],
          'set_aside': [], 'trials': []}


class PrometheusTest(base.BaseTestCase):

    def samples(self, text):
        """Return values by name and labels, as Prometheus reads them."""
        found = {}
        for family in parser.text_string_to_metric_families(text):
            self.assertEqual('gauge', family.type)
            self.assertTrue(family.documentation)
            for sample in family.samples:
                key = (sample.name.removeprefix('nova_snapext_'),
                       *sorted(sample.labels.items()))
                self.assertNotIn(key, found)
                found[key] = sample.value
        return found

    def test_idle_host_has_zeros(self):
        found = self.samples(prometheus.text(STATUS))
        self.assertEqual(
            (1, 1, 0, 0, 0),
            (found['status_success',], found['journal_locked',],
             found['snapshots_running',], found['incomplete_images',],
             found['interrupted_snapshots', ('state', 'waiting')]))

    def test_running_snapshot_has_what_is_known_of_it(self):
        found = self.samples(prometheus.text(
            {**STATUS, 'snapshots': [SNAPSHOT]}))
        label = ('instance_uuid', 'u')
        self.assertEqual(
            (10, 100, 1767225600.5, 4097),
            (found['snapshot_sent_bytes', label],
             found['snapshot_size_bytes', label],
             found['snapshot_begin_timestamp_seconds', label],
             found['snapshot_host_bytes', label, ('kind', 'scratch')]))
        self.assertNotIn(('snapshot_rate_bytes_per_second', label), found)
        self.assertEqual(1, found['snapshot_info', ('image', 'i'), label,
                                  ('phase', 'uploading'),
                                  ('strategy', 'backup')])

    def test_interrupted_snapshot_is_counted(self):
        found = self.samples(prometheus.text({**STATUS, 'snapshots': [
            {**SNAPSHOT, 'state': 'waiting'}]}))
        self.assertEqual(1, found['interrupted_snapshots',
                                  ('state', 'waiting')])
        self.assertEqual(0, found['snapshots_running',])

    def test_two_snapshots_of_an_instance_have_one_sample_of_its_files(self):
        found = self.samples(prometheus.text({**STATUS, 'snapshots': [
            SNAPSHOT, {**SNAPSHOT, 'state': 'waiting', 'image_id': 'j'}]}))
        self.assertEqual(4097, found[
            'snapshot_host_bytes', ('instance_uuid', 'u'),
            ('kind', 'scratch')])

    def test_nonsense_in_the_journal_stays_one_line(self):
        odd = 'a"b\\c\nd\udcff'
        found = self.samples(prometheus.text({**STATUS, 'snapshots': [
            {**SNAPSHOT, 'strategy': odd}]}))
        [labels] = [dict(key[1:]) for key in found
                    if key[0] == 'snapshot_info']
        self.assertEqual('a"b\\c\nd\\udcff', labels['strategy'])

    def test_time_that_does_not_exist_hides_no_other_metric(self):
        for state in ('running', 'waiting'):
            found = self.samples(prometheus.text({**STATUS, 'snapshots': [
                {**SNAPSHOT, 'began_at': '2026-13-01T00:00:00',
                 'state': state}]}))
            self.assertEqual(1, found['status_success',])
            self.assertNotIn('timestamp', ' '.join(key[0] for key in found))

    def test_status_that_is_not_known_is_told(self):
        self.assertEqual({('status_success',): 0},
                         self.samples(prometheus.failure()))
