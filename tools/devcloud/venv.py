# SPDX-License-Identifier: Apache-2.0
"""The virtual environment with OpenStack and the wheel of this checkout."""

import configparser
import hashlib
import pathlib
import shutil

from devcloud import errors
from devcloud import shell
from devcloud import state as cloud_state

#: Packages from PyPI that are the same in all releases of OpenStack.
REQUIREMENTS = (
    'gunicorn',
    'PyMySQL',
    'python-openstackclient',
)

#: The services, and by how much their major version is behind that of Nova.
#: Each release of OpenStack raises all of them by one.
SERVICES = {
    'glance': 1,
    'keystone': 4,
    'neutron': 5,
    'nova': 0,
    'openstack-placement': 18,
}

#: Files `nova31.txt` and so on: the versions of a release of OpenStack.
CONSTRAINTS = cloud_state.CHECKOUT / 'tools' / 'constraints'

#: Patches for bugs of packages: file, wrong lines, right lines.
#: NOTE: Nova 34.0 lets libvirt select the firmware of UEFI guests, and also
#: writes `<loader secure='no'/>`. libvirt 9.0 (Debian 12) refuses this. Nova
#: 33 and earlier named the files; this patch does the same.
PATCHES = (
    ('nova/virt/libvirt/driver.py', """
                guest.os_firmware = 'efi'
""", """
                guest.os_loader = '/usr/share/OVMF/OVMF_CODE_4M.fd'
                guest.os_loader_type = 'pflash'
                guest.os_loader_readonly = True
                guest.os_nvram_template = '/usr/share/OVMF/OVMF_VARS_4M.fd'
"""),
)


def install(state: cloud_state.State) -> bool:
    """Create the virtual environment, unless it exists.

    :returns: whether it was created
    """
    libvirt = shell.run(['pkg-config', '--modversion', 'libvirt']).strip()
    wanted = [*_requirements(state.nova_release),
              f'libvirt-python=={libvirt}']
    inputs = repr((wanted, PATCHES))
    if state.is_done('venv', inputs):
        return False
    # NOTE: with the system's packages, because libnbd's binding is not on
    # PyPI.
    shell.run(['/usr/bin/python3', '-m', 'venv', '--system-site-packages',
               state.venv])
    _pip(state, 'install', *wanted)
    if libvirt.startswith('9.0.'):
        _patch(state)
    state.mark_done('venv', inputs)
    return True


def releases() -> list[int]:
    """Return the major versions of Nova that have constraints."""
    return sorted(int(file.stem.removeprefix('nova'))
                  for file in CONSTRAINTS.glob('nova*.txt'))


def choose_release(state: cloud_state.State, nova: int) -> None:
    """Record which release of OpenStack the cloud is.

    :param nova: major version of its Nova
    :raises CloudError: the cloud is another one already
    """
    if nova == state.nova_release:
        return
    if state.venv.exists():
        raise errors.CloudError(
            f'{state.root} has {_name(state.nova_release)}, whose databases '
            f'fit no other release. Remove it with `cloud down --purge`, or '
            f'set SNAPEXT_CLOUD_DIR to another directory')
    state.record_nova_release(nova)


def _name(nova: int | None) -> str:
    return f'Nova {nova}' if nova else 'the newest Nova'


def _requirements(nova: int | None) -> list[str]:
    """Return what pip installs: requirements, and `-c` with constraints.

    :param nova: major version of Nova; None: the newest of each service
    """
    if nova is None:
        # In the order that existing clouds were made with.
        return sorted((*SERVICES, *REQUIREMENTS), key=str.lower)
    return [*(f'{name}=={nova - behind}.*'
              for name, behind in SERVICES.items()),
            *REQUIREMENTS, *constraints(nova)]


def constraints(nova: int | None) -> list[str]:
    """Return arguments of pip: the versions of a release of OpenStack.

    :param nova: major version of Nova; None: the newest of each package
    """
    return [] if nova is None else ['-c', str(CONSTRAINTS / f'nova{nova}.txt')]


def _patch(state: cloud_state.State) -> None:
    """Apply the patches; files without the wrong lines do not change."""
    (packages,) = state.venv.glob('lib/python3.*/site-packages')
    for name, wrong, right in PATCHES:
        file = packages / name
        file.write_text(file.read_text().replace(wrong, right))


def install_checkout(state: cloud_state.State) -> bool:
    """Build this checkout's wheel and install it, if the checkout changed.

    :returns: whether it was installed
    """
    files = source_files()
    fingerprint = fingerprint_of(files)
    if state.is_done('wheel', fingerprint):
        return False
    source = state.root / 'build' / 'source'
    shutil.rmtree(source.parent, ignore_errors=True)
    copy_sources(files, source)
    env = {}
    # pbr gets the version from git's history, if there is one.
    if shutil.which('git') and (cloud_state.CHECKOUT / '.git').is_dir():
        shutil.copytree(cloud_state.CHECKOUT / '.git', source / '.git',
                        symlinks=True)
    else:
        setup = configparser.ConfigParser()
        setup.read(source / 'setup.cfg')
        env['PBR_VERSION'] = setup['metadata']['version']
    wheels = state.root / 'build' / 'wheels'
    _pip(state, 'wheel', '--no-deps', '-w', wheels, source, env=env)
    (wheel,) = wheels.glob('*.whl')
    # The first command replaces an installed wheel of the same version; the
    # second one installs missing dependencies.
    _pip(state, 'install', '--no-deps', '--force-reinstall', wheel)
    _pip(state, 'install', f'{wheel}[zstd]', *constraints(state.nova_release))
    shutil.rmtree(source)
    state.mark_done('wheel', fingerprint)
    return True


def _pip(state: cloud_state.State, *words: str | pathlib.Path,
         env: dict[str, str] | None = None) -> None:
    shell.run([state.bin('python'), '-m', 'pip', '-q',
               '--disable-pip-version-check', *words],
              env={'PIP_ROOT_USER_ACTION': 'ignore', **(env or {})})


def source_files() -> list[str]:
    """Return the names of the files that the wheel is built from."""
    return [name for name in checkout_files()
            if not name.startswith(('tools/', 'tests/'))]


def checkout_files() -> list[str]:
    """Return the names of all files of the checkout, without what is made."""
    checkout = cloud_state.CHECKOUT
    try:
        listed = shell.run(
            ['git', '-c', 'safe.directory=*', '-C', checkout, 'ls-files',
             '-z', '--cached', '--others', '--exclude-standard']).split('\0')
    except errors.CloudError:  # There is no git, or no repository.
        listed = [str(path.relative_to(checkout))
                  for path in checkout.rglob('*')]
    outside = ('.git/', '.tox/', '.stestr/')
    return sorted(name for name in listed
                  if name and not name.startswith(outside)
                  and '__pycache__' not in name
                  and (checkout / name).is_file())


def copy_sources(files: list[str], target: pathlib.Path) -> None:
    """Copy files of the checkout, because a build leaves files in it."""
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(cloud_state.CHECKOUT / name, target / name,
                     follow_symlinks=False)


def fingerprint_of(files: list[str]) -> str:
    """Return a digest of the names and contents of files of the checkout."""
    digest = hashlib.sha256()
    for name in files:
        content = (cloud_state.CHECKOUT / name).read_bytes()
        digest.update(f'{name} {len(content)}\n'.encode() + content)
    return digest.hexdigest()
