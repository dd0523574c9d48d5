# SPDX-License-Identifier: Apache-2.0
"""The errors that libvirt, QEMU's programs and the host raise."""

from __future__ import annotations

import subprocess

import libvirt
from nova import exception as nova_exception
from oslo_concurrency import processutils
from oslo_privsep import daemon

from nova_snapext import compat
from nova_snapext import exception

# A program that exceeds its time limit raises TimeoutExpired. Under eventlet,
# green programs raise another class of this name.
TIMEOUTS: tuple[type[Exception], ...] = (subprocess.TimeoutExpired,)
if eventlet := compat.get_eventlet():
    TIMEOUTS += (eventlet.patcher.original('subprocess').TimeoutExpired,)

#: The code of a command that was sent to the guest agent, and not answered in
#: time. Since libvirt 11.2; before, it was VIR_ERR_AGENT_UNRESPONSIVE. Older
#: bindings have no name for it, and may meet a newer libvirtd.
AGENT_COMMAND_TIMEOUT: int = getattr(
    libvirt, 'VIR_ERR_AGENT_COMMAND_TIMEOUT', 112)

#: Errors of libvirt, of Nova's device functions, of programs that we run, of
#: the host's file system, of a privileged helper that can't be started, and
#: our own. A bug of ours is none of them.
HYPERVISOR_ERRORS: tuple[type[Exception], ...] = (
    libvirt.libvirtError,
    nova_exception.DeviceDetachFailed,
    nova_exception.DeviceNotFound,
    processutils.ProcessExecutionError,
    *TIMEOUTS,
    daemon.FailedToDropPrivileges,
    OSError,
    exception.SnapextError,
)
