# SPDX-License-Identifier: Apache-2.0
"""Each finding of ``nova-snapext check``, provoked on a real host.

Those about Ceph are in tests/ceph/test_check.py, and those about strategies in
tests/functional/cmd/test_trial.py. These can't be provoked here, and have unit
tests:

* apparmor, selinux: the kernel has neither. What is found while libvirtd does
  not run is provoked with files in the place of the kernel's.
* journal-directory on a shared file system: it needs a server.
* user, without the capability to change it: such a root can't prepare a host.
* glance-properties, an image that can't be deleted: it needs a Glance that
  fails between two requests.
* glance-quotas: it needs limits in Keystone, and a Glance that uses them.
"""

import json
import subprocess

from devcloud import api
from devcloud import state as cloud_state

from tests.e2e import base
from tests.e2e import full_glance
from tests.e2e import protected_glance
from tests.e2e import wrong_host
from tests import in_full

failed = wrong_host.failed
unknown = wrong_host.unknown
warning = wrong_host.warning

#: Nobody listens there.
NOBODY = 'http://127.0.0.1:1'
NO_LIBVIRTD = 'libvirt.connection_uri=qemu:///system?socket=$D/none'

#: Options whose value names an option that does not exist.
NOPE = 'no such option nope'

COMPUTE = f'start_compute $S/venv/bin/python {wrong_host.NAMED}\n'
#: Another user may read the configuration.
READABLE = 'chmod -R o+rX $D/nova.conf $D/nova-compute.d\n'
WORK = 'snapext.work_directory=$D/work'
JOURNAL = 'snapext.journal_directory=$D/work'
INSTANCES = 'DEFAULT.instances_path=$D/work'
OWN_ROOTWRAP = 'DEFAULT.rootwrap_config=$D/rootwrap.conf'

#: A service that accepts each connection, and never answers.
SILENT = 'socat {} SYSTEM:"sleep 600" > /dev/null 2>&1 &\n'


class InstallationTest(wrong_host.CheckTestCase):

    def test_host_without_a_fault_has_no_finding(self):
        items, is_found = self.check(wrong_host.Finding(
            'ok', 'driver-starts', 'with the strategies'))
        self.assertEqual([], wrong_host.problems(items))
        self.assertTrue(is_found)

    def test_running_nova_compute_is_found_with_its_configuration(self):
        run = subprocess.run(
            (self.state.bin('nova-snapext'), 'check', '--format', 'json'),
            capture_output=True, text=True)
        texts = {one['name']: one['text'] for one in json.loads(
            run.stdout)['items'] if one['status'] == 'ok'}
        self.assertIn(str(self.state.etc / 'nova/nova.conf'),
                      texts['configuration'])
        self.assertIn('nova-compute runs', texts['nova-compute'])

    def test_nova_that_does_not_suit_is_reported(self):
        version = ('change $P; sed -i "s/^Version: .*/Version: {}/" '
                   '$P/nova-*.dist-info/METADATA')
        self.assert_found(
            failed('nova', 'Nova is not installed for $S/venv/bin/python',
                   script='change $P; rm -r $P/nova'),
            failed('nova', 'Nova 30.3.0 is too old',
                   script=version.format('30.3.0')),
            warning('nova', 'Nova 99.0.0 is newer than',
                    script=version.format('99.0.0')),
            failed('packages', 'Host._get_connection: it does not exist',
                   script='change $P; sed -i "s/def _get_connection/def _x/" '
                          '$P/nova/virt/libvirt/host.py'))

    def test_missing_part_of_the_package_is_reported(self):
        no_module = 'change $P; rm $P/nova/virt/snapext.py\n'
        self.assert_found(
            failed('strategies', 'does not know the strategies backup, cold',
                   script='change $P; rm -r $P/nova_snapext-*.dist-info'),
            failed('driver', 'not installed with all its files',
                   script=no_module),
            failed('driver', 'did not read nova-snapext.pth',
                   script=f'{no_module} rm $P/nova-snapext.pth'),
            failed('driver', 'is an editable install', script=no_module +
                   'echo \'{"dir_info": {"editable": true}}\' > '
                   '$(echo $P/nova_snapext-*.dist-info)/direct_url.json'),
            failed('driver', 'No module named \'lxml\'',
                   script='change $P; rm -r $P/lxml'))

    def test_missing_package_of_the_host_is_reported(self):
        find = 'change /usr; find /usr/lib*'
        self.assert_found(
            failed('libnbd', 'Install the package python3-libnbd',
                   script=f'{find} "(" -name nbd.py -o -name "libnbdmod*" ")" '
                          f'-delete'),
            failed('libnbd', 'is for another Python',
                   script=f'{find} -name "libnbdmod*.so" -execdir '
                          f'mv {{}} libnbdmod.cpython-399-x.so ";"'),
            failed('libnbd', 'libnbd.so.0: cannot open shared object file',
                   script=f'{find} -name "libnbd.so*" -delete'),
            failed('programs', 'qemu-nbd (qemu-utils',
                   script='change /usr; rm /usr/bin/qemu-nbd'),
            failed('programs', 'setpriv (util-linux)',
                   script='change /usr; rm /usr/bin/setpriv'))


class ConfigurationTest(wrong_host.CheckTestCase):

    def test_configuration_that_can_not_be_read_is_reported(self):
        wrong = '> $D/nova-compute.d/99-wrong.conf'
        other = 'start_compute $S/venv/bin/python --config-file $D/other\n'
        self.assert_found(
            failed('configuration', '/none: it does not exist',
                   named='--config-file /none'),
            failed('configuration', '99-wrong.conf:1, Invalid section',
                   script=f'echo "[DEFAULT" {wrong}'),
            failed('configuration', 'there is no /etc/nova/nova.conf',
                   script='change /etc; rm -rf /etc/nova', named=''),
            failed('configuration', 'A nova-compute runs in a container',
                   script='python3() { unshare --mount '
                          '$S/venv/bin/python "$@"; }; '
                          'start_compute python3', named=''),
            failed('configuration', 'Several nova-compute run here',
                   script=COMPUTE + other, named=''))

    def test_nova_compute_that_was_not_checked_is_reported(self):
        self.assert_found(
            warning('nova-compute', 'these files were changed later: '
                    '$D/nova-compute.d/99-wrong.conf',
                    script=f'{COMPUTE} touch -d "9 seconds" '
                           f'$D/nova-compute.d/99-wrong.conf'),
            warning('nova-compute', 'was started as /usr/bin/python3',
                    script=COMPUTE.replace('$S/venv', '/usr').replace(
                        'python ', 'python3 ')))

    def test_other_driver_is_reported_with_the_file_that_decides(self):
        self.assert_found(
            failed('compute-driver', 'compute_driver is libvirt.LibvirtDriver,'
                   ' set in $D/nova-compute.d/99-wrong.conf',
                   'DEFAULT.compute_driver=libvirt.LibvirtDriver'),
            failed('compute-driver', 'compute_driver is not set', script=(
                'sed -i /compute_driver/d $D/nova-compute.d/10-compute.conf')),
            failed('compute-driver', NOPE, 'DEFAULT.compute_driver=$nope'))

    def test_wrong_value_is_reported(self):
        self.assert_found(
            failed('options', '[snapext]agent_timeout in '
                              '$D/nova-compute.d/99-wrong.conf can\'t be used',
                   'snapext.agent_timeout=soon'),
            failed('options', f'[DEFAULT]instances_path in '
                              f'$D/nova-compute.d/99-wrong.conf can\'t be '
                              f'used: {NOPE}',
                   'DEFAULT.instances_path=$nope'),
            failed('configuration', '[DEFAULT]debug in '
                                    '$D/nova-compute.d/99-wrong.conf can\'t '
                                    'be used', 'DEFAULT.debug=perhaps'),
            failed('options', 'but found \'qcow3\'',
                   'libvirt.snapshot_image_format=qcow3'),
            failed('options', '[snapext]strategy names bakcup',
                   'snapext.strategy=bakcup'),
            failed('options', '[snapext]auto_strategies names auto',
                   'snapext.auto_strategies=auto'),
            failed('options', 'zstandard is not installed',
                   'snapext.compression_type=zstd',
                   'libvirt.snapshot_compression=True',
                   script='change $P; rm -rf $P/zstandard*'),
            failed('options', 'Write "external,rbd"',
                   'libvirt.images_type=rbd', 'snapext.strategy=external'),
            failed('driver-starts', '[snapext]strategy names bakcup',
                   'snapext.strategy=bakcup'),
            failed('driver-starts', 'The driver can\'t be created',
                   'libvirt.images_type=vmdk'),
            # Any check that is ended by an error that it does not expect.
            unknown('guest-trim', 'This check could not be made',
                    'snapext.guest_trim=maybe'))

    def test_value_that_serves_some_guests_only_is_told(self):
        self.assert_found(
            warning('options', 'virt_type is lxc', 'libvirt.virt_type=lxc'),
            warning('options', 'Did you mean agent_timeout?',
                    'snapext.agent_timeuot=3'),
            warning('options', 'Remove it.', 'snapext.nonsense=3'),
            warning('guest-trim', 'hw_disk_discard is not unmap',
                    'snapext.guest_trim=always'),
            warning('guest-trim', 'preallocate_images is space',
                    'snapext.guest_trim=always',
                    'libvirt.hw_disk_discard=unmap',
                    'DEFAULT.preallocate_images=space'))


class PrivilegeTest(wrong_host.CheckTestCase):

    def test_user_who_does_not_see_what_nova_may_do_is_told_so(self):
        self.assert_found(
            unknown('configuration', 'this user may not read it',
                    user='nobody'),
            unknown('user', 'Run "sudo -u nova $S/venv/bin/nova-snapext check',
                    user='nobody', script=READABLE),
            unknown('libvirt', 'does not respond to this user',
                    user='nobody', script=READABLE),
            unknown('libvirt', 'whether it does so to Nova is not seen',
                    'DEFAULT.state_path=/none'),
            unknown('user', 'No such file or directory: \'/none\'',
                    'DEFAULT.state_path=/none'),
            unknown('user', NOPE, 'DEFAULT.state_path=$nope'),
            unknown('user', 'belongs to user id 4711',
                    'DEFAULT.state_path=$D', script='chown 4711 $D'))

    def test_rootwrap_that_can_not_start_the_helper_is_reported(self):
        copy = 'cp $S/etc/nova/rootwrap.conf $D\n'
        filters = 'change $S/etc; echo nonsense > ' \
                  '$S/etc/nova/rootwrap.d/compute.filters'
        self.assert_found(
            failed('rootwrap', '/none does not exist',
                   'DEFAULT.rootwrap_config=/none'),
            failed('rootwrap', 'parsing errors', OWN_ROOTWRAP,
                   script=f'{copy} echo nonsense >> $D/rootwrap.conf'),
            failed('rootwrap', 'contains no section headers', script=filters),
            unknown('rootwrap', 'as the user of nova-compute', OWN_ROOTWRAP,
                    user='nobody',
                    script=f'{copy}{READABLE} chmod 600 $D/rootwrap.conf'),
            failed('rootwrap', 'in no directory of exec_dirs', OWN_ROOTWRAP,
                   script=f'{copy} sed -i "s:^exec_dirs=.*:exec_dirs=/none:" '
                          f'$D/rootwrap.conf'),
            warning('rootwrap', 'and not $S/venv/bin/privsep-helper',
                    OWN_ROOTWRAP,
                    script=f'{copy} touch $D/privsep-helper; '
                           f'chmod +x $D/privsep-helper; '
                           f'sed -i "s:^exec_dirs=:exec_dirs=$D,:" '
                           f'$D/rootwrap.conf'),
            failed('root-helper', 'Correct the file of [DEFAULT]rootwrap_conf',
                   script=filters))

    def test_sudo_that_nova_may_not_use_is_reported(self):
        self.assert_found(
            failed('root-helper', 'Install sudo.',
                   script='change /usr; rm /usr/bin/sudo'),
            failed('root-helper', 'a password is required',
                   script='change /etc; rm /etc/sudoers.d/snapext-cloud'))


class LibvirtTest(wrong_host.CheckTestCase):

    def test_libvirtd_that_does_not_run_is_reported(self):
        modules = 'mount -t tmpfs tmpfs /sys/module; ' \
                  'mkdir -p /sys/module/apparmor/parameters; ' \
                  'echo Y > /sys/module/apparmor/parameters/enabled'
        selinux = 'mount -t tmpfs tmpfs /sys/fs; mkdir /sys/fs/selinux; ' \
                  'echo 1 > /sys/fs/selinux/enforce'
        self.assert_found(
            failed('libvirt', 'See that libvirtd runs', NO_LIBVIRTD),
            unknown('versions', 'are not known: Failed to connect',
                    NO_LIBVIRTD),
            unknown('driver-starts', 'needs libvirt', NO_LIBVIRTD),
            unknown('apparmor', 'AppArmor is enabled; whether libvirt',
                    NO_LIBVIRTD, script=modules),
            unknown('selinux', 'SELinux is enforcing; whether libvirt',
                    NO_LIBVIRTD, script=selinux))

    def test_libvirtd_that_is_not_as_usual_is_told(self):
        port = 16599
        self.assert_found(
            warning('libvirt', 'libvirtd is reached by the network',
                    f'libvirt.connection_uri=qemu+tcp://127.0.0.1:{port}'
                    f'/system',
                    script=f'socat TCP-LISTEN:{port},bind=127.0.0.1,'
                           f'reuseaddr,fork UNIX-CONNECT:'
                           f'$S/libvirt/run/libvirt-sock 2> $D/socat & '
                           f'await_port {port}'),
            warning('versions', 'names nonsense, which is no known defect',
                    'snapext.fixed_defects=nonsense'))

    def test_known_defect_of_the_installed_qemu_is_told(self):
        items, _is_found = self.check(warning('versions', ''))
        if not any('known defect ' in one['text'] for one in items):
            self.skipTest('this QEMU and this libvirt have no known defect')
        self.assert_found(warning('versions', 'Refused for these guests'))

    @in_full.only
    def test_libvirtd_that_hangs_is_reported(self):
        self.assert_found(failed(
            'libvirt', 'libvirtd did not respond for 20 seconds',
            'libvirt.connection_uri=qemu:///system?socket=$D/socket',
            script=SILENT.format('UNIX-LISTEN:$D/socket,mode=666,fork') +
            'await_socket $D/socket'))


class DirectoriesTest(wrong_host.CheckTestCase):

    def test_directory_that_nova_can_not_use_is_reported(self):
        self.assert_found(
            failed('work-directory', 'can have 44', f'{WORK}/{"w" * 44}'),
            failed('work-directory', 'can\'t create', WORK),
            failed('work-directory', 'move $D/work away', WORK,
                   script='touch $D/work'),
            failed('work-directory', 'belongs to user root, mode 755', WORK,
                   script='mkdir $D/work'),
            failed('instances-path', 'can\'t create', INSTANCES),
            failed('journal-directory', 'can\'t create', JOURNAL),
            failed('journal-directory', 'Run "chmod o+x $D/work"',
                   f'{JOURNAL}/x', script='mkdir -m 700 $D/work'))

    def test_directory_with_a_wrong_mode_is_reported(self):
        make = 'mkdir $D/work; chown nova $D/work; chmod {} $D/work'
        self.assert_found(
            failed('work-directory', 'Others than Nova\'s user may write',
                   WORK, script=make.format('757')),
            failed('journal-directory', 'Others than Nova\'s user may write',
                   JOURNAL, script=make.format('770')),
            failed('work-directory', 'it may not search $D/work (mode 700)',
                   WORK, script=make.format('700')),
            failed('instances-path', 'it may not search $D/work (mode 700)',
                   INSTANCES, script=make.format('700')))

    def test_file_system_that_does_not_suit_is_reported(self):
        make = 'mount_memory $D/work '
        self.assert_found(
            failed('journal-directory', 'is on a tmpfs, which forgets',
                   JOURNAL, script=f'{make} size=1m'),
            failed('space', 'can have no more files', JOURNAL,
                   script=f'{make} nr_inodes=1'),
            failed('space', '[snapext]journal_directory ($D/work) is full',
                   JOURNAL, script=f'{make} size=1m; cat /dev/zero '
                                   f'> $D/work/full 2> $D/error || true'),
            failed('space', '[snapext]work_directory ($D/work) has 100 MiB',
                   WORK, script=f'{make} size=100m'),
            failed('space', '[DEFAULT]instances_path ($D/work) has 100 MiB',
                   INSTANCES, script=f'{make} size=100m'),
            unknown('space', 'The free space of $D/work is not known', WORK,
                    script='ln -s none $D/work'),
            warning('libvirt-directories',
                    'There is no [snapext]libvirt_config_directory (/none)',
                    'snapext.libvirt_config_directory=/none'))


class GlanceTest(wrong_host.CheckTestCase):

    def test_service_user_that_does_not_suit_is_reported(self):
        demo = api.Client.demo(self.state)
        remove = 'sed -i "/^.service_user/,/^$/{{/^{}/d}}" $D/nova.conf'
        self.assert_found(
            warning('service-user', 'send_service_user_token is not set',
                    'service_user.send_service_user_token=False'),
            failed('service-user', 'has no auth_type',
                   script=remove.format('auth_type')),
            failed('service-user', 'parameters which were not given: auth_url',
                   script=remove.format('auth_url')),
            failed('service-user', 'HTTP 401', 'service_user.password=wrong'),
            failed('service-user', 'Connection refused',
                   f'service_user.auth_url={NOBODY}'),
            warning('service-user', 'and not "service"',
                    f'service_user.username={demo.user}',
                    f'service_user.password={demo.password}',
                    f'service_user.project_name={demo.project}'))

    def test_glance_that_does_not_respond_is_reported(self):
        self.assert_found(
            failed('glance', 'Connection refused',
                   f'glance.endpoint_override={NOBODY}'),
            failed('glance', 'endpoint for image service in Nowhere',
                   'glance.region_name=Nowhere'),
            failed('glance', 'HTTP 404',
                   f'glance.endpoint_override={cloud_state.url("keystone")}'))

    def test_quota_that_is_full_is_told(self):
        with full_glance.running() as url:
            self.assert_found(
                warning('glance-quotas', 'The quota image_count_total of '
                        'Nova\'s service project is used with 5 of 5',
                        f'glance.endpoint_override={url}'),
                warning('glance-quotas', 'openstack registered limit list',
                        f'glance.endpoint_override={url}'))

    @in_full.only
    def test_glance_that_hangs_is_not_waited_for(self):
        port = 16598
        self.assert_found(unknown(
            'glance', 'This check was not finished',
            f'glance.endpoint_override=http://127.0.0.1:{port}',
            script=SILENT.format(f'TCP-LISTEN:{port},bind=127.0.0.1,'
                                 f'reuseaddr,fork') +
            f'await_port {port}'))


class TrialTest(wrong_host.CheckTestCase):
    """Without libvirt, a trial creates an image only."""

    SETTINGS = (NO_LIBVIRTD, JOURNAL)
    JOURNAL = 'install -d -o nova $D/work'

    def assert_trial_finds(self, finding):
        items, is_found = self.check(finding, '--trial')
        self.assertTrue(is_found, wrong_host.problems(items))

    def test_trial_that_can_create_nothing_is_told(self):
        no_glance = f'glance.endpoint_override={NOBODY}'
        self.assert_trial_finds(unknown(
            'trial', 'only Nova\'s user can', user='nobody',
            script=READABLE))
        self.assert_trial_finds(unknown(
            'trial', 'the driver can\'t be created', *self.SETTINGS,
            no_glance, script=self.JOURNAL))
        self.assert_trial_finds(failed(
            'glance-properties', 'create an image', *self.SETTINGS, no_glance,
            script=self.JOURNAL))
        self.assert_trial_finds(failed(
            'glance-properties', 'The journal of the trial can\'t be used',
            *self.SETTINGS, no_glance))

    @in_full.only
    def test_property_that_glance_protects_is_named(self):
        rule = dict.fromkeys(('create', 'update', 'delete'), '!')
        with protected_glance.running(self.state, {
                'snapext_consistency': {**rule, 'read': '@'}}) as url:
            self.assert_trial_finds(warning(
                'glance-properties', 'refuses properties: snapext_consistency',
                *self.SETTINGS, f'glance.endpoint_override={url}',
                script=self.JOURNAL))


class GuestsTest(wrong_host.CheckTestCase, base.CloudTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.name = f'guest {cls.shared_guest()}'

    def test_guest_that_is_not_served_as_it_could_be_is_told(self):
        self.assert_found(
            failed(self.name, 'no strategy can take a snapshot',
                   'snapext.strategy=rbd'),
            failed(self.name, f'No snapshot is possible: {NOPE}',
                   'snapext.work_directory=$nope'),
            warning(self.name, 'stages the whole disk on this host',
                    'snapext.auto_strategies=native'))

    def test_conductor_that_does_not_respond_is_told(self):
        self.assert_found(unknown(
            'conductor', 'See that RabbitMQ and nova-conductor run',
            'DEFAULT.transport_url=rabbit://x:x@127.0.0.1:1/'))
