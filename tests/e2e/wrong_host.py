# SPDX-License-Identifier: Apache-2.0
"""A host on which one thing is wrong, for ``nova-snapext check``.

The command has a copy of nova-compute's configuration, and mount and PID
namespaces of its own. So packages are missing, and file systems full, for this
command only, and the cloud can be in use.
"""

from concurrent import futures
import dataclasses
import json
import pathlib
import re
import shutil
import string
import subprocess
import tempfile

from devcloud import config
from devcloud import state as cloud_state
from oslotest import base

# Seconds for one run, in which two checks may take their limit of 60.
TIMEOUT = 180

# Runs at the same time. Most of a run is Python's imports.
WORKERS = 2

PATH = '/usr/sbin:/usr/bin:/sbin:/bin'

#: Options that name the copy of the configuration.
NAMED = '--config-file $D/nova.conf --config-dir $D/nova-compute.d'

# Runs first, in the namespaces. What it changes is in memory.
SCRIPT = """
set -e
layers=$D/layers
mkdir $layers
mount -t tmpfs tmpfs $layers

# Let the command see changes below a directory.
change() {
    upper=$layers$1/upper work=$layers$1/work
    mkdir -p $upper $work
    mount -t overlay -o lowerdir=$1,upperdir=$upper,workdir=$work overlay $1
}

# Mount a file system with options on a directory of Nova's user.
mount_memory() {
    mkdir -p $1
    mount -t tmpfs -o uid=$(id -u nova),mode=711,$2 tmpfs $1
}

# Run a process that looks like nova-compute. It ends with the command.
start_compute() {
    echo 'import time; time.sleep(600)' > $D/nova-compute
    python=$1
    shift
    $python $D/nova-compute "$@" &
    until tr '\\0' ' ' < /proc/$!/cmdline | grep -q nova-compute; do :; done
}

# Wait for a server in the background.
await_socket() { until test -S $1; do sleep 0.1; done; }
await_port() {
    until socat /dev/null TCP:127.0.0.1:$1 2> $D/error; do sleep 0.1; done
}
"""

# Runs last, with the command as arguments.
COMMAND = """
test $USER = root || exec runuser -u $USER -- "$@"
exec "$@"
"""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the command finds, and how it is provoked.

    All texts can have variables: ``$D`` is a directory of this finding, ``$S``
    that of the cloud, and ``$P`` that of the packages of nova-compute.

    :ivar status: of its item
    :ivar name: of its item
    :ivar text: a part of its text and remedy
    :ivar settings: of nova-compute, each SECTION.OPTION=VALUE
    :ivar script: shell commands that make it so, for this command only
    :ivar user: that runs the command
    :ivar named: options of the command
    """

    status: str
    name: str
    text: str
    settings: tuple[str, ...] = ()
    script: str = ''
    user: str = 'root'
    named: str = NAMED


def failed(name, text, *settings, **more):
    return Finding('failed', name, text, settings, **more)


def unknown(name, text, *settings, **more):
    return Finding('unknown', name, text, settings, **more)


def warning(name, text, *settings, **more):
    return Finding('warning', name, text, settings, **more)


class CheckTestCase(base.BaseTestCase):
    """Runs the command beside the services of the cloud, and changes none."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.state = cloud_state.State.default()
        [cls.packages] = cls.state.venv.glob('lib/python3*/site-packages')

    def check(self, finding, *words):
        """Run the command on a host where something is wrong.

        :param words: further arguments of the command
        :returns: the items, and whether the finding is among them
        """
        # The work directory needs a short path.
        directory = pathlib.Path(tempfile.mkdtemp(prefix='c', dir='/tmp'))
        self.addCleanup(shutil.rmtree, directory)
        directory.chmod(0o755)
        variables = {'D': directory, 'S': self.state.root,
                     'P': self.packages}
        self._write_configuration(directory, finding.settings, variables)
        run = subprocess.run(
            ('unshare', '--mount', '--pid', '--fork', '--kill-child',
             '--mount-proc', 'sh', '-c',
             f'{SCRIPT}{finding.script}\n{COMMAND}', 'sh',
             self.state.bin('nova-snapext'), 'check', '--format', 'json',
             *_filled(finding.named, variables).split(), *words),
            env={'PATH': f'{self.state.venv}/bin:{PATH}', 'USER': finding.user,
                 **{name: str(path) for name, path in variables.items()}},
            capture_output=True, text=True, cwd='/', timeout=TIMEOUT)
        self.assertEqual('', run.stderr, finding)
        found = json.loads(run.stdout)
        self.assertEqual(
            {'failed': 1, 'unknown': 3}.get(found['status'], 0),
            run.returncode, finding)
        text = _filled(finding.text, variables)
        return found['items'], any(
            (one['status'], one['name']) == (finding.status, finding.name) and
            text in f'{one["text"]} -> {one["remedy"]}'
            for one in found['items'])

    def _write_configuration(self, directory, settings, variables):
        """Copy what `tools/cloud up` writes, and add settings."""
        source = self.state.etc / 'nova'
        added = {}
        for setting in settings:
            name, _, value = _filled(setting, variables).partition('=')
            section, _, option = name.partition('.')
            added.setdefault(section, {})[option] = value
        (directory / 'nova-compute.d').mkdir()
        for name, text in (
                ('nova.conf', (source / 'nova.conf').read_text()),
                ('nova-compute.d/10-compute.conf', (
                    source / 'nova-compute.d/10-compute.conf').read_text()),
                ('nova-compute.d/99-wrong.conf', config.render(added))):
            file = directory / name
            file.touch(0o640)
            shutil.chown(file, group=config.USER)
            file.write_text(text)

    def assert_found(self, *findings):
        """Provoke findings, each on its own, and check that each is made."""
        with futures.ThreadPoolExecutor(WORKERS) as pool:
            results = [*pool.map(self.check, findings)]
        self.assertEqual([], [
            (finding, problems(items)) for finding, (items, is_made) in zip(
                findings, results, strict=True) if not is_made])


def problems(items):
    """Return the items that are not as on a host without a fault.

    The defects are those of this host's QEMU and libvirt. Guests, which other
    tests have, depend on more than the host.
    """
    return [one for one in items if one['status'] != 'ok' and
            not re.match(r'known defect', one['text']) and
            not one['name'].startswith('guest ')]


def _filled(text, variables):
    return string.Template(text).safe_substitute(variables)
