# SPDX-License-Identifier: Apache-2.0
"""A small real OpenStack on one machine: what ``tools/cloud`` is made of.

Standard library only: it runs on the bare ``/usr/bin/python3`` of Debian 12,
before anything else is installed.
"""
