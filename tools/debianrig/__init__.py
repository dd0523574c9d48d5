# SPDX-License-Identifier: Apache-2.0
"""A Debian tree with newer libvirt and QEMU, to run the functional tests."""
