# SPDX-License-Identifier: Apache-2.0
"""Check whether KVM really runs guests on this machine.

On many nested hosts, /dev/kvm exists and even creates virtual machines, but it
refuses the CPU of the host, hangs as soon as a virtual CPU runs, or is slower
than QEMU's emulation. Only running a virtual CPU shows whether KVM works.
"""

import os
import pathlib
import subprocess
import tempfile

DEVICE = pathlib.Path('/dev/kvm')

#: Maximum seconds of QEMU, its firmware and the boot sector: they take 0.2
#: where KVM works, and also under TCG.
PROBE_TIMEOUT = 3

#: The boot sector writes 0x10 to the isa-debug-exit device at port 0xf4; QEMU
#: then exits with twice that plus one.
EXIT_CODE = 0x10 << 1 | 1

#: A boot sector that switches to 64-bit mode with paging, like a kernel, loops
#: a million times, and exits. It is loaded at 0x7c00.
BOOT_SECTOR = bytes.fromhex(
    # 16-bit: no interrupts, flat segments, a stack
    'fa 31c0 8ed8 8ec0 8ed0 bc007c fc'
    # clear 0x1000 to 0x4000, for PML4, PDPT and page directory
    'bf0010 6631c0 b9000c 66f3ab'
    # map the first 2 MiB onto itself
    'c70600100320 c70600200330 c70600308300'
    # CR4.PAE, CR3, EFER.LME
    '66b820000000 0f22e0 66b800100000 0f22d8'
    '66b9800000c0 0f32 0d0001 0f30'
    # descriptor table; CR0.PG and PE; far jump
    '0f0116807c 66b801000080 0f22c0 ea5d7c0800'
    # 64-bit: loop 0x100000 times; out 0xf4, 0x10; hlt
    'b900001000 e2fe 66baf400 b010 ee f4 ebfd 6690'
    # the descriptors: none, 64-bit code; then their limit and address
    '0000000000000000 00000000009a2000 0f00 707c0000'
).ljust(510, b'\0') + b'\x55\xaa'


def works(accelerator: str = 'kvm', timeout: float = PROBE_TIMEOUT) -> bool:
    """Return whether a virtual CPU really runs, and is fast enough.

    :param accelerator: QEMU's name for it; `tcg` tests this probe itself
    :param timeout: seconds after which the probe is killed, and has failed
    """
    if accelerator == 'kvm' and not os.access(DEVICE, os.R_OK | os.W_OK):
        return False
    cpu = 'host' if accelerator == 'kvm' else 'max'
    with tempfile.NamedTemporaryFile(prefix='kvm-probe-') as disk:
        disk.write(BOOT_SECTOR)
        disk.flush()
        try:
            probe = subprocess.run(
                ['qemu-system-x86_64', '-accel', accelerator, '-cpu', cpu,
                 '-machine', 'pc', '-m', '64', '-nodefaults',
                 '-no-user-config', '-display', 'none', '-drive',
                 f'file={disk.name},format=raw,if=floppy,readonly=on',
                 '-device', 'isa-debug-exit,iobase=0xf4,iosize=1'],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, timeout=timeout)
        except subprocess.TimeoutExpired:
            return False
    return probe.returncode == EXIT_CODE
