# SPDX-License-Identifier: Apache-2.0
import os
import sys

import setuptools

# Build backends do not find modules beside this file: build_commands.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

setuptools.setup(setup_requires=['pbr>=5.8.0'], pbr=True)
