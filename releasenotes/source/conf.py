# SPDX-License-Identifier: Apache-2.0
extensions = ['openstackdocstheme', 'reno.sphinxext']
project = 'nova-snapext release notes'
copyright = 'nova-snapext developers'
html_theme = 'openstackdocs'
openstackdocs_auto_name = False
master_doc = 'index'
