# SPDX-License-Identifier: Apache-2.0
"""The WSGI module that gunicorn loads for all API services."""

import importlib
import os
import sys

# NOTE: the services parse sys.argv, and would exit on gunicorn's options.
sys.argv[1:] = []

application = importlib.import_module(
    os.environ['SNAPEXT_WSGI_MODULE']).application
