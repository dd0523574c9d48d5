# SPDX-License-Identifier: Apache-2.0
"""The [snapext] options, registered on Nova's CONF."""


import nova.conf
from oslo_config import cfg
from oslo_utils import units

CONF = nova.conf.CONF

GROUP = cfg.OptGroup(
    'snapext',
    title='Snapshot options',
    help="""
How snapshots are taken when ``[DEFAULT]compute_driver`` is
``snapext.SnapextDriver``: frozen beside the running guest and streamed to
Glance, with nothing staged on the host.
""")

CHOICE_OPTS = [
    cfg.StrOpt(
        'strategy',
        default='auto',
        help="""
Strategy by which snapshots are taken, unless the request or the flavor asks
for another.

Possible values:

* ``auto``: the first of ``[snapext]preference`` that can serve the guest as
  it is, and harms it least
* the name of a strategy, or several, separated by commas, in the order of
  preference: the first that can serve the guest as it is

A snapshot that none of them can serve fails, with the reasons, and touches
nothing. ``backup`` and ``external`` serve no guest that is shut off, as one
that is being shelved is: to prefer one of them, write ``external,cold``.

Related options:

* ``[snapext]preference``
* ``[snapext]flavors_may_ask``
* ``[snapext]requestable``
"""),
    cfg.ListOpt(
        'preference',
        default=['backup', 'external', 'cold', 'native'],
        help="""
The strategies of ``auto``, in the order of preference.

Within this order ``auto`` still passes over what comes at a price that the
next one does not ask: ``cold`` while the guest runs and Nova's own snapshot
would be live, ``backup`` where Nova's direct snapshot of a Ceph RBD disk moves
no data at all. ``internal`` stops the guest while its memory is saved, and is
for those who ask for it.
"""),
    cfg.ListOpt(
        'requestable',
        default=['auto', 'backup', 'external', 'internal', 'cold'],
        help="""
The strategies that a request may ask for, by the property ``snapext_strategy``
(``openstack server image create --property snapext_strategy=external``). A
request that asks for another one fails. Empty: requests may not ask.

An image that a guest was booted from asks for all snapshots of the guest when
it has this property.
"""),
    cfg.BoolOpt(
        'flavors_may_ask',
        default=True,
        help="""
Whether flavors may ask for a strategy, by the extra spec
``snapext:strategy``. Where they may not, snapshots of guests whose flavor does
so fail.
"""),
]

FREEZE_OPTS = [
    cfg.StrOpt(
        'freeze_directory',
        default='${libvirt.snapshots_directory}',
        help="""
Directory in which each running snapshot has a directory of its own, with the
NBD socket that its frozen disk is read from and, for a running guest, the
scratch file.

The scratch file keeps what the guest overwrites while the snapshot is read,
so the file system needs room for that: at the most the size of the root disk.
The path must be short, as that of a Unix socket can't exceed 107 bytes, and
every directory on the way must be open (o+x) to the user that QEMU runs as.
Nothing else on the host can enter the directories made in it.

Related options:

* ``[libvirt]snapshots_directory``
"""),
    cfg.StrOpt(
        'journal_directory',
        default='$state_path/snapext',
        help="""
Directory in which each running snapshot has a small file that tells what it
holds, so that whatever a crash leaves is cleaned up when nova-compute starts
again.

It must outlive a reboot, be on this host's own storage (not shared with other
hosts), and belong to the user that nova-compute runs as. The file system must
keep what was fsynced.
"""),
    cfg.IntOpt(
        'agent_timeout',
        default=30,
        min=1,
        help="""
How long the guest agent may take to freeze the guest's filesystems, and to
thaw them again, in seconds.

The filesystems are frozen only where the image has the property
``hw_qemu_guest_agent``. An agent that does not answer in time fails the
snapshot where the image has ``os_require_quiesce``, and otherwise leaves it
crash-consistent.
"""),
    cfg.IntOpt(
        'job_timeout',
        default=60,
        min=1,
        help="""
How long libvirt may take to end a backup job, and qemu-nbd to start or to
end, in seconds, before it is given up with an error.
"""),
    cfg.IntOpt(
        'libvirtd_timeout',
        default=30,
        min=0,
        help="""
How long libvirtd may give no sign of life until it is taken for hung, in
seconds; 0: for ever, as without this driver.

The connections to it are then ended, and what waits for it in nova-compute
fails, whatever that is. As always when the connection is lost, Nova disables
the host for new instances until libvirtd answers again; what a snapshot could
not clean up meanwhile is cleaned up then.

A libvirtd that is only busy gives its signs of life, however long its calls
take; one that starts has ten times as long. It is looked for on this host,
and not where Nova runs under eventlet.
"""),
    cfg.IntOpt(
        'space_headroom',
        default=512,
        min=0,
        help="""
Space that a running snapshot leaves free on the host, in MiB, beside
``[DEFAULT]reserved_host_disk_mb``.

QEMU pauses a guest that finds no space for what it writes. So the file systems
that fill while the root disk is frozen are looked at every second: that of
``[snapext]freeze_directory`` for the strategy ``backup``, of the instance's
directory for ``external`` and ``cold`` (of a guest that runs), of the disks
themselves for ``internal``. Where less than this is left, or would be in two
seconds at the pace at which it is shrinking, the snapshot is given up, and
none is begun. Guests that write fast need more of it: their pace is only seen
from one look to the next.

Possible values:

* 0: space is not watched. A guest that is paused all the same is resumed at
  the snapshot's end, and loses nothing.
* any number of MiB

Related options:

* ``[DEFAULT]reserved_host_disk_mb``
* ``[snapext]freeze_directory``
"""),
]

READ_OPTS = [
    cfg.IntOpt(
        'read_timeout',
        default=120,
        min=1,
        help="""
How long the frozen disk may go without answering any read, in seconds, before
the snapshot is given up.
"""),
    cfg.IntOpt(
        'read_rate_limit',
        default=0,
        min=0,
        help="""
The most that all snapshots of this host together read from the frozen disks,
in bytes per second, so that they leave the storage to the guests. An upload
waits for what it sends, and is slowed down with it.

Possible values:

* 0: as fast as Glance takes it
* any number of bytes per second
"""),
    cfg.IntOpt(
        'niceness',
        default=10,
        min=0,
        max=19,
        help="""
By how much the priority of the threads is lowered that read, encode, digest
and send, see nice(1): on a host without an idle CPU they yield to the guests,
and to a Glance that runs there, which is faster for it. Where CPUs are idle
it makes no difference.

It has no effect where nova-compute runs under eventlet.
"""),
]

ENCODE_OPTS = [
    cfg.StrOpt(
        'find_zeros',
        default='auto',
        choices=[
            ('auto', 'Where a sample of it, a hundredth, has zeros'),
            ('always', 'Whatever a sample says'),
            ('never', 'Send every allocated cluster'),
        ],
        help="""
Look for zeros in what the root disk has allocated, and leave them out of
qcow2 images.

They are found while the image is sent, in the same reading; but its size can't
be announced to Glance before its first byte then. It pays where the storage
can't tell holes from data (a block device reports none) and where guests write
zeros.

Images in raw format always hold every byte of the disk, and compressed ones
never hold a cluster of zeros.

Related options:

* ``[libvirt]snapshot_image_format``
* ``[libvirt]snapshot_compression``
"""),
    cfg.StrOpt(
        'compression_type',
        default='zstd',
        choices=[
            ('zstd', 'Several times as fast; for QEMU 5.1 and newer, where it '
                     'is built with it'),
            ('zlib', 'As in compressed images of Nova; for all versions'),
        ],
        help="""
What qcow2 images are compressed by, where ``[libvirt]snapshot_compression`` is
set. They are sent while they are made; nothing is staged on the host.

Related options:

* ``[libvirt]snapshot_compression``
"""),
    cfg.IntOpt(
        'compression_level',
        default=1,
        min=1,
        max=19,
        help="""
Level of the compression: a higher one makes the image smaller and the snapshot
slower. ``zlib`` has 9 of them, and takes more for 9.
"""),
    cfg.IntOpt(
        'compression_threads',
        default=0,
        min=0,
        max=64,
        help="""
Threads that compress one snapshot's image. 0: as many as nova-compute may use
CPUs.
"""),
    cfg.IntOpt(
        'qcow2_store',
        default=32,
        min=1,
        help="""
Memory in which a snapshot keeps what it has read and can't send yet, in MiB,
where zeros are left out of its image or it is compressed.

The tables of such an image come behind as much of it as a sample of the disk
makes expect, less this. What comes behind them and has no place here is read
and compressed twice. 16 MiB more are taken by what is being compressed.
"""),
    cfg.IntOpt(
        'compression_min_saving',
        default=10,
        min=0,
        max=100,
        help="""
The least that compression has to save of the data, in percent: where a sample
of the disk shows that it would save less, the image is sent as it is. 0: it is
always compressed.
"""),
]

UPLOAD_OPTS = [
    cfg.IntOpt(
        'upload_piece_size',
        default=128 * units.Ki,
        min=4 * units.Ki,
        max=4 * units.Mi,
        help="""
Size of the pieces in which an image is handed to the HTTP client, in bytes.

python-glanceclient sends each as one chunk. Chunks of more than 256 KiB make
Glance's workers under gunicorn allocate and free memory for each of them,
which costs a quarter of the time of an upload.
"""),
    cfg.IntOpt(
        'glance_settle_timeout',
        default=60,
        min=1,
        help="""
How long Glance may take to notice that an upload broke off and to put the
image back to ``queued``, in seconds, before the next attempt is given up.

Related options:

* ``[glance]num_retries``
"""),
    cfg.IntOpt(
        'upload_stall_timeout',
        default=300,
        min=1,
        help="""
How long Glance may take nothing of what is sent to it, or give no answer, in
seconds. An upload that stalls for so long is broken off and tried again, as
one whose connection was dropped.

Glance answers an upload when its store has all of it: a store that goes on
writing after the last byte needs its time. Where ``[glance]timeout`` is set it
counts instead, as it does for all of Nova's requests to Glance.

Related options:

* ``[glance]num_retries``
* ``[glance]timeout``
"""),
]

ALL_OPTS = [*CHOICE_OPTS, *FREEZE_OPTS, *READ_OPTS, *ENCODE_OPTS,
            *UPLOAD_OPTS]


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """List the options for oslo-config-generator."""
    return [(GROUP, ALL_OPTS)]


def register_opts(conf: cfg.ConfigOpts) -> None:
    conf.register_group(GROUP)
    conf.register_opts(ALL_OPTS, group=GROUP)


register_opts(CONF)
