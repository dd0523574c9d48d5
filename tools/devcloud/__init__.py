# SPDX-License-Identifier: Apache-2.0
"""A small real OpenStack on one machine: the code of ``tools/cloud``.

It uses only the standard library: it runs on ``/usr/bin/python3`` of a new
Debian 12, before anything else is installed.
"""
