# SPDX-License-Identifier: Apache-2.0
"""A strategy for file systems that share blocks, such as XFS and Btrfs."""

import contextlib
import dataclasses
import pathlib

import libvirt
from oslo_concurrency import processutils
from oslo_utils import timeutils

from nova_snapext import freeze
from nova_snapext.freeze import directory as snapshot_directory
from nova_snapext.freeze import qemu_nbd
from nova_snapext.freeze import quiesce
from nova_snapext import read


class ReflinkStrategy(freeze.FreezingStrategy):

    name = 'reflink'
    STORAGES = frozenset({'file'})

    def _reason_against(self, plan):
        if not plan.running:
            return 'the guest is shut off: there is nothing to freeze'
        return None

    def _freeze(self, plan, stack):
        directory = snapshot_directory.Directory.choose(plan.instance)
        stack.hold(directory)
        directory.make()
        copy = pathlib.Path(directory.path, 'disk')
        filesystems = quiesce.Filesystems(plan)
        stack.hold(filesystems)
        with filesystems.quiesced() as consistency, \
                stopped(plan.guest), timeutils.StopWatch() as watch:
            instant = timeutils.utcnow()
            processutils.execute(
                'cp', '--reflink=always', plan.disk.path, copy)
        export = qemu_nbd.Export(plan.instance.uuid, directory.socket)
        stack.hold(export)
        export.serve(dataclasses.replace(plan.disk, path=str(copy)),
                     directory)
        return freeze.FrozenDisk(
            uri=read.unix_uri(directory.socket, plan.disk.target),
            consistency=consistency, freeze_seconds=watch.elapsed(),
            instant=instant)


@contextlib.contextmanager
def stopped(guest):
    """Have QEMU write out all it holds, and write nothing more."""
    runs = guest._domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    if runs:
        guest.pause()
    try:
        yield
    finally:
        if runs:
            guest.resume()
