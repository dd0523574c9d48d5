# SPDX-License-Identifier: Apache-2.0
"""Horizon, in a virtual environment of its own."""

import pathlib

from devcloud import shell
from devcloud import state as cloud_state
from devcloud import venv

#: Packages from PyPI. WhiteNoise serves the static files, as Apache does in a
#: deployment.
REQUIREMENTS = ('gunicorn', 'horizon', 'whitenoise')

SETTINGS = """\
from openstack_dashboard.settings import HORIZON_CONFIG
from openstack_dashboard.settings import MIDDLEWARE

ALLOWED_HOSTS = [{host!r}]
CACHES = {{'default': {{
    'BACKEND': 'django.core.cache.backends.locmem.LocMemCache'}}}}
COMPRESS_OFFLINE = True
DEBUG = False
MIDDLEWARE = ('whitenoise.middleware.WhiteNoiseMiddleware', *MIDDLEWARE)
OPENSTACK_KEYSTONE_URL = {keystone!r}
SECRET_KEY = {secret!r}
STATIC_ROOT = {static!r}
TIME_ZONE = 'UTC'
"""

ENVIRONMENT = {
    'DJANGO_SETTINGS_MODULE': 'openstack_dashboard.settings',
    'PYTHONWARNINGS': 'ignore',
}


def install(state: cloud_state.State) -> bool:
    """Create the virtual environment and the static files, unless they exist.

    :returns: whether they were created
    """
    wanted = [*REQUIREMENTS, *venv.constraints(state.nova_release)]
    settings = SETTINGS.format(
        host=cloud_state.HOST, keystone=cloud_state.url('keystone', '/v3'),
        secret=state.passwords()['horizon'],
        static=str(state.horizon / 'static'))
    if state.is_done('horizon', repr((wanted, settings))):
        return False
    home = state.horizon / 'venv'
    shell.run(['/usr/bin/python3', '-m', 'venv', home])
    shell.run([home / 'bin/python', '-m', 'pip', '-q',
               '--disable-pip-version-check', 'install', *wanted],
              env={'PIP_ROOT_USER_ACTION': 'ignore'})
    file = state.etc / 'horizon' / 'local_settings.py'
    shell.write(file, settings, mode=0o640, group=cloud_state.USER)
    _link(home, file)
    for words in (('collectstatic', '--clear', '--no-input'), ('compress',)):
        shell.run([home / 'bin/django-admin', *words], env=ENVIRONMENT)
    state.mark_done('horizon', repr((wanted, settings)))
    return True


def _link(home: pathlib.Path, settings: pathlib.Path) -> None:
    """Let Horizon read its settings, where its packages have a link too."""
    (packages,) = home.glob('lib/python3.*/site-packages')
    link = packages / 'openstack_dashboard/local/local_settings.py'
    link.unlink(missing_ok=True)
    link.symlink_to(settings)
