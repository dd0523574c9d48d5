# SPDX-License-Identifier: Apache-2.0
"""Find out whether KVM really runs guests on this machine.

/dev/kvm may exist, and even create virtual machines, and yet hang as soon as a
virtual CPU runs, as on many nested hosts. Only running one tells.
"""

import os
import pathlib
import subprocess
import tempfile

DEVICE = pathlib.Path('/dev/kvm')

#: Seconds for QEMU to start and for its guest to run three instructions.
PROBE_TIMEOUT = 5

#: What the guest writes to the isa-debug-exit device; QEMU then exits with
#: twice that plus one.
EXIT_VALUE = 0x10
EXIT_CODE = EXIT_VALUE << 1 | 1
EXIT_PORT = 0xf4

#: 64 KiB of firmware: `hlt` all over, and at the reset vector
#: `mov dx, EXIT_PORT; mov al, EXIT_VALUE; out dx, al`.
RESET_VECTOR = 0xfff0
FIRMWARE = (b'\xf4' * RESET_VECTOR
            + bytes([0xba, EXIT_PORT, 0, 0xb0, EXIT_VALUE, 0xee])
            ).ljust(0x10000, b'\xf4')


def works(accelerator: str = 'kvm', timeout: float = PROBE_TIMEOUT) -> bool:
    """Whether a virtual CPU really runs.

    :param accelerator: QEMU's name of what to try; `tcg` proves the probe
    :param timeout: seconds after which it counts as hung and is killed
    """
    if accelerator == 'kvm' and not os.access(DEVICE, os.R_OK | os.W_OK):
        return False
    with tempfile.NamedTemporaryFile(prefix='kvm-probe-') as firmware:
        firmware.write(FIRMWARE)
        firmware.flush()
        try:
            probe = subprocess.run(
                ['qemu-system-x86_64', '-accel', accelerator, '-machine',
                 'pc', '-m', '16', '-nodefaults', '-display', 'none',
                 '-no-user-config', '-bios', firmware.name, '-device',
                 f'isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1'],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, timeout=timeout)
        except subprocess.TimeoutExpired:
            return False
    return probe.returncode == EXIT_CODE
