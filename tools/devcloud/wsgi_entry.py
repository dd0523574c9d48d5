# SPDX-License-Identifier: Apache-2.0
"""What gunicorn loads for every API service."""

import importlib
import os
import sys

# NOTE: the services parse sys.argv, and would exit over gunicorn's options.
sys.argv[1:] = []

application = importlib.import_module(
    os.environ['SNAPEXT_WSGI_MODULE']).application
