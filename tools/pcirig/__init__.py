# SPDX-License-Identifier: Apache-2.0
"""A machine with an IOMMU and an SR-IOV card, emulated, to run tests in.

QEMU emulates both, so that VFIO, the card's virtual functions and their
hot-unplug from a guest are the real ones of Linux, libvirt and QEMU, on any
machine, KVM or not.
"""
