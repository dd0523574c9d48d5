# SPDX-License-Identifier: Apache-2.0
extensions = [
    'openstackdocstheme',
    'oslo_config.sphinxext',
]
project = 'nova-snapext'
copyright = 'nova-snapext developers'
html_theme = 'openstackdocs'
openstackdocs_auto_name = False
master_doc = 'index'
