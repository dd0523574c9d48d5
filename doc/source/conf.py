# SPDX-License-Identifier: Apache-2.0
import configparser
import pathlib

from pbr import packaging

extensions = [
    'openstackdocstheme',
    'oslo_config.sphinxext',
]
project = 'nova-snapext'
copyright = 'nova-snapext developers'
html_theme = 'openstackdocs'
html_static_path = ['static']
html_css_files = ['narrow.css']
openstackdocs_auto_name = False
# The theme does not know the version in setup.cfg, and would count from 0.0.1.
openstackdocs_auto_version = False
_setup = configparser.ConfigParser()
_setup.read(pathlib.Path(__file__).parents[2] / 'setup.cfg')
version = release = packaging.get_version(
    _setup['metadata']['name'], _setup['metadata']['version'])
master_doc = 'index'
man_pages = [
    (f'cli/{name}', name, description, ['nova-snapext developers'], 1)
    for name, description in (
        ('nova-snapext', 'look after the snapshots of a compute host'),
        ('nova-snapext-status', 'check a compute host for upgrades'))]
