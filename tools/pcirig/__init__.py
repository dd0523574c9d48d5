# SPDX-License-Identifier: Apache-2.0
"""An emulated machine with an IOMMU and an SR-IOV card, to run tests in.

QEMU emulates the IOMMU and the card. VFIO, the card's virtual functions and
their hot-unplug from a guest are the real code of Linux, libvirt and QEMU, on
any machine, with or without KVM.
"""
