# SPDX-License-Identifier: Apache-2.0
"""libvirt and QEMU."""
