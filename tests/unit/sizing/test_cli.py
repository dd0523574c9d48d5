# SPDX-License-Identifier: Apache-2.0

import contextlib
import io
import json
import pathlib
import re
import shlex
import subprocess
import unittest

from sizingmodel import cli

ROOT = pathlib.Path(__file__).parents[3]
PAGE = ROOT / 'doc/source/admin/sizing.rst'
GUEST = '--data 10 --disk 40 --write-rate 1'


def call(arguments):
    """Return exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(shlex.split(arguments))
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def examples():
    """Return the commands on the page, each with the output below it."""
    for block in re.findall(r'::\n\n((?:    .*\n|\n)+)', PAGE.read_text()):
        text = re.sub('^    ', '', block, flags=re.MULTILINE).strip()
        command = re.match(r'\$ tools/sizing ((?:.*\\\n)*.*)\n', text)
        if command:
            yield command[1].replace('\\\n', ' '), text[command.end():]


class CliTest(unittest.TestCase):

    def output(self, arguments):
        code, out, err = call(f'{GUEST} {arguments} --json')
        self.assertEqual((0, ''), (code, err))
        return json.loads(out)

    def test_examples_on_the_page_print_what_the_page_shows(self):
        shown = list(examples())
        self.assertGreaterEqual(len(shown), 4)
        for arguments, output in shown:
            with self.subTest(arguments):
                code, out, err = call(arguments)
                self.assertEqual((0, output, ''), (code, out.strip(), err))

    def test_command_runs_with_nothing_but_python(self):
        out = subprocess.run(
            ['/usr/bin/python3', '-I', '-S', ROOT / 'tools/sizing',
             *GUEST.split()], check=True, capture_output=True, text=True,
            cwd='/').stdout
        self.assertEqual(call(GUEST)[1], out)

    def test_bad_input_is_one_sentence_that_names_the_option(self):
        for arguments, words in (
                ('', '--data, --disk, --write-rate'),
                (f'{GUEST} --hosts 0', "--hosts: '0' is not a whole number "
                                       "from 1 to"),
                (f'{GUEST} --guests 1.5', "--guests: '1.5' is not a whole"),
                (f'{GUEST} --fixed=-1', "--fixed: '-1' is not a number from"),
                (f'{GUEST} --data nan', "--data: 'nan' is not a number"),
                (f'{GUEST} --disk inf', "--disk: 'inf' is not a number"),
                (f'{GUEST} --upload-rate 0', "--upload-rate: '0' is not"),
                (f'{GUEST} --data 41', '--data 41 is more than --disk 40'),
                (f'{GUEST} --data-spread 100 --disk 19',
                 '--data-spread 100 is up to 20, more than --disk 19'),
                (f'{GUEST} --image zeroes', '--image zeroes needs --sent'),
                (f'{GUEST} --hosts 1000 --guests 201', 'more than the 200000'),
                (f'{GUEST} --merge-rate 1', '--merge-rate has to be above 1 '),
                (f'{GUEST} --merge-rate 9 --write-size 4', 'above 16 MiB/s'),
                (f'{GUEST} --image jpeg', '--image'),
                (f'{GUEST} --nights 2', '--nights')):
            with self.subTest(arguments):
                code, out, err = call(arguments)
                self.assertEqual((2, ''), (code, out))
                self.assertRegex(err, r'\Asizing: [^\n]+ \(see --help\)\n\Z')
                self.assertIn(words, err)

    def test_extreme_numbers_are_computed(self):
        for arguments in ('--data 1e9 --disk 1e9 --write-rate 1e9 '
                          '--upload-rate 0.001 --write-size 0.001',
                          '--data 0.001 --disk 0.001 --write-rate 0 '
                          '--upload-rate 1e9 --fixed 0 --guests 50'):
            with self.subTest(arguments):
                self.assertEqual(0, call(arguments)[0])

    def test_image_sets_defaults_that_options_replace(self):
        for arguments, memory, sent in (
                ('', 15, 1), ('--image zeroes --sent 0.034', 47, 0.034),
                ('--image compressed', 63, 0.38),
                ('--image compressed --memory 0 --sent 0.5', 0, 0.5)):
            with self.subTest(arguments):
                assumed = self.output(arguments)['assumed']
                self.assertEqual((memory, sent),
                                 (assumed['memory'], assumed['sent']))

    def test_zeros_left_out_give_measured_size_and_time(self):
        # The block device of the appendix: 279 MiB of 8 GiB in 5.58 s.
        sent = 279 / 8192
        found = self.output(f'--data 8 --image zeroes --sent {sent}')
        self.assertAlmostEqual(279, found['formula']['sent_mib'])
        self.assertAlmostEqual(
            5.58, found['formula']['one_snapshot_seconds'], places=2)

    def test_largest_data_of_a_guest_may_fill_the_disk(self):
        found = self.output('--data-spread 10 --disk 11')
        self.assertEqual(0.1, found['assumed']['spread'])

    def test_rounds_by_hand_on_the_page_are_those_of_the_command(self):
        by_hand = re.search(
            r'With ([\d,]+) guests, one full round of ten takes ([\d.]+) s, '
            r'and the last guest alone ([\d.]+) s: together ([\d.]+) s',
            ' '.join(PAGE.read_text().split()))
        self.assertIsNotNone(by_hand)
        guests, *seconds = by_hand.groups()
        found = self.output(
            f'--guests {guests} --host-network 1000')['formula']
        for shown, name in zip(seconds, (
                'loaded_snapshot_seconds', 'one_snapshot_seconds',
                'night_seconds'), strict=True):
            self.assertAlmostEqual(float(shown), found[name], delta=0.06)

    def test_zero_is_no_limit_for_what_is_shared(self):
        found = self.output('--glance-rate 0 --host-network 5')
        self.assertIsNone(found['assumed']['glance_rate'])
        self.assertEqual(5, found['formula']['glance_demand_mib_per_second'])

    def test_json_has_units_of_the_text(self):
        found = self.output('--guests 20 --window 1 --glance-rate 100')
        self.assertEqual(3600, found['assumed']['window'])
        self.assertEqual(10240, found['assumed']['data'])
        self.assertAlmostEqual(20 * 10240, found['simulation']['sent_mib'])
        self.assertEqual(10 * 15, found['formula']['host_memory_mib'])
        self.assertEqual(
            100, found['simulation']['glance_peak_mib_per_second'])

    def test_help_explains_every_option(self):
        code, out, _ = call('--help')
        self.assertEqual(0, code)
        for option in cli.parser()._actions:
            self.assertIn(option.option_strings[-1], out)
            self.assertTrue(option.help)
