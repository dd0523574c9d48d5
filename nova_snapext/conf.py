# SPDX-License-Identifier: Apache-2.0
"""The [snapext] options, registered on Nova's CONF."""


import nova.conf
from oslo_config import cfg

CONF = nova.conf.CONF

GROUP = cfg.OptGroup(
    'snapext',
    title='Snapshot options',
    help="""
These options take effect when ``[DEFAULT]compute_driver`` is
``snapext.SnapextDriver``. Its snapshots freeze the root disk while the guest
runs and stream it to Glance; no copy is staged on the host.
""")

STRATEGY_OPTS = [
    cfg.StrOpt(
        'strategy',
        default='auto',
        help="""
Strategy of snapshots whose request and flavor do not ask for another one.

Possible values:

* ``auto``: the first strategy of ``[snapext]auto_strategies`` that can take
  the snapshot and does not disturb the guest more than a later one would
* the name of a strategy, or several names separated by commas: the first one
  that can take the snapshot; ``auto`` in a list stands for the strategies of
  ``[snapext]auto_strategies``

If none of them can, the snapshot fails. The error gives the reasons, and
nothing is changed. If one of several fails to freeze the disk, and nothing was
touched, the next one is tried. ``backup`` and ``external`` can't take a
snapshot of a guest that is shut off, and a guest is shut off when it is
shelved. Only ``rbd``, ``backup`` and ``native`` serve disks in Ceph. If you
prefer another one, write ``external,auto``, or ``external,cold,rbd``.

Related options:

* ``[snapext]auto_strategies``
* ``[snapext]allowed_flavor_strategies``
* ``[snapext]allowed_image_strategies``
"""),
    cfg.ListOpt(
        'auto_strategies',
        default=['rbd', 'backup', 'external', 'cold', 'native'],
        help="""
Strategies that ``auto`` tries, the preferred one first.

``auto`` skips a strategy that disturbs the guest if a later one does not. It
skips ``cold`` for a running guest if Nova's own snapshot would be live.
``rbd`` serves disks in Ceph, and no others. ``internal`` stops the guest while
its memory is saved; name it here only if that is acceptable for every guest.
"""),
    cfg.ListOpt(
        'allowed_image_strategies',
        default=['auto', 'rbd', 'backup', 'external', 'internal', 'cold'],
        help="""
Strategies that a snapshot request may ask for, with the image property
``snapext_strategy`` (``openstack server image create --property
snapext_strategy=external``). A request for another one fails. If the list is
empty, requests can't ask for a strategy.

An image with this property passes it on to the guests that boot from it, and
so to all of their snapshots.
"""),
    cfg.ListOpt(
        'allowed_flavor_strategies',
        default=['auto', 'rbd', 'backup', 'external', 'internal', 'cold',
                 'native'],
        help="""
Strategies that a flavor may ask for, with the extra spec ``snapext:strategy``.
If the flavor of a guest asks for another one, the snapshots of this guest
fail. If the list is empty, flavors can't ask for a strategy.
"""),
    cfg.ListOpt(
        'fixed_defects',
        default=[],
        sample_default=['mirror-pause-deadlock'],
        help="""
Names of known defects that QEMU and libvirt of this host do not have, although
their versions say so, because the distribution has backported the fix.

``nova-snapext check`` prints the known defects of the installed versions, and
the documentation lists all. A strategy that would walk into one is refused
for the guests concerned. If a defect is named here and QEMU has it after all,
a snapshot can end its guest.
"""),
]

FREEZE_OPTS = [
    cfg.StrOpt(
        'work_directory',
        default='${libvirt.snapshots_directory}',
        help="""
Directory for the work directories of running snapshots. Each contains the NBD
socket of the frozen disk and, with the strategy ``backup``, the scratch file.
Those of a guest are in ``libvirt-UUID`` below this directory, with the uuid of
the guest, as libvirt names its AppArmor profile.

The scratch file keeps the data that the guest overwrites while the snapshot
is read. Its file system needs space for that: at most the size of the root
disk. The path may have at most 44 bytes, because the path of a Unix socket in
it can't exceed 107 bytes. The user that QEMU runs as needs search permission
(o+x) on every directory of the path, and no other user than Nova's should be
able to write there. No other user of the host can enter the work directories.

Related options:

* ``[libvirt]snapshots_directory``
"""),
    cfg.StrOpt(
        'journal_directory',
        default='$state_path/snapext',
        help="""
Directory for the snapshot journal. Each running snapshot has a small file
there that names everything it holds on the host. After a crash nova-compute
reads these files when it starts, and cleans up.

The directory must survive a reboot, be on storage of this host only, and
belong to the user that runs nova-compute. Its file system must keep data that
was written with fsync.
"""),
    cfg.StrOpt(
        'libvirt_config_directory',
        default='/etc/libvirt/qemu',
        help="""
Directory in which libvirt keeps the definitions of guests.

libvirt does not make a changed definition durable, and a loss of power can
undo the change. So the driver syncs this directory after it has changed which
disk a guest uses. If the definition of the guest is not there, as with a
libvirtd in a container, all file systems of the host are synced, which takes
longer.
"""),
    cfg.StrOpt(
        'libvirt_save_directory',
        default='/var/lib/libvirt/qemu/save',
        help="""
Directory in which libvirt keeps the memory of suspended guests.

The strategy ``cold`` syncs it when it has resumed a guest: a loss of power
must not bring back memory that no longer matches the disk. If there is no such
directory, all file systems of the host are synced, which takes longer.
"""),
    cfg.IntOpt(
        'agent_timeout',
        default=30,
        min=1,
        help="""
Seconds that the guest agent may take to answer, to freeze the guest's
filesystems, and again to thaw them.

The filesystems are frozen only if the image has the property
``hw_qemu_guest_agent``. If the agent does not answer in time, the snapshot
fails if the image has ``os_require_quiesce``; otherwise it is
crash-consistent. It also fails if the filesystems can't be thawed.
"""),
    cfg.StrOpt(
        'guest_trim',
        default='requested',
        choices=[
            ('never', 'Requests can\'t ask for it either'),
            ('requested', 'If the request has the image property '
                          '``snapext_trim=yes``'),
            ('always', 'Unless the request has the image property '
                       '``snapext_trim=no``'),
        ],
        help="""
When guests discard the free space of their file systems before a snapshot.

What the file systems have freed still lies on the disk. If it is discarded, it
is not sent, and its space on the host is free again. The guest agent does this
for all mounted file systems, as the command fstrim does, with some load on
the storage. It takes from less than a second to minutes.

By default only a request leads to it. Its user could run fstrim in the guest
just as well, and nobody else's snapshot takes longer, or changes the disk.

A guest trims only if it runs, its image has ``hw_qemu_guest_agent``, its root
disk passes discards on, and its storage takes them back: qcow2 files, raw
files in file systems that make holes, Ceph, devices that support discards.
A root disk whose space is preallocated, or in a thick LVM volume, is left
alone. Otherwise the log has the reason, and the snapshot goes on. Other disks
of the guest are not looked at: what is mounted of them is trimmed too, if they
pass discards on.

Related options:

* ``[libvirt]hw_disk_discard``: has to be ``unmap``. It has an effect at the
  next hard reboot of a guest.
* ``[DEFAULT]preallocate_images``
* ``[snapext]guest_trim_timeout``
"""),
    cfg.IntOpt(
        'guest_trim_timeout',
        default=300,
        min=1,
        help="""
Seconds for which a snapshot waits until its guest has trimmed.

A trim can't be ended, and keeps the guest agent from anything else. After this
time it goes on in the guest, and the snapshot does not wait for it: its image
is crash-consistent, because the agent can't freeze the filesystems. If the
image has ``os_require_quiesce``, the snapshot waits as long again until the
agent can, and fails after that. As at any time, it ends if its image is
deleted.
"""),
    cfg.IntOpt(
        'operation_timeout',
        default=60,
        min=1,
        help="""
Seconds that one operation on the host may take before it fails with an error:

* libvirt starts or ends a backup job
* a block commit, or a job that an interrupted snapshot left in libvirt, goes
  on without any progress
* a block commit does not gain on its guest, although the guest's writes are
  limited as far as ``[snapext]merge_min_write_kbps`` allows
* libvirtd is away, for example during its restart, and the end of a snapshot
  needs it
* qemu-nbd starts or stops
* qemu-img creates an overlay or reads the metadata of an image
* Ceph responds to a request
* Ceph lists what a disk holds, for a backup job; all that QEMU takes for data
  is read if that takes longer

Operations whose duration depends on the amount of data, such as a commit that
makes progress, have no limit.
"""),
    cfg.IntOpt(
        'recovery_interval',
        default=60,
        min=1,
        help="""
Seconds between two looks at what snapshots have left on this host.

What could not be cleaned up, because somebody's job was in the way or storage
was out of reach, is tried again: at once when a job of the guest ends, when
the guest is started, stopped, paused or unpaused, and when libvirtd is back;
otherwise by a periodic look. A try that took long is repeated after ten times
as long, so that an overlay that can't be merged does not slow its guest down
all the time. The log has each reason once. Images that could not be deleted
are tried every tenth time.
"""),
    cfg.IntOpt(
        'libvirtd_hang_timeout',
        default=30,
        min=0,
        help="""
Seconds after which a libvirtd that does not respond is considered hung. 0:
never, as without this driver.

All connections to a hung libvirtd are closed. Every call in nova-compute that
waits for it then fails. As after any lost connection, Nova disables the host
for new instances until libvirtd responds again. Cleanup that was not possible
is done at that time.

A busy libvirtd still responds, no matter how long its calls take. A libvirtd
that is starting has ten times as long. Only a libvirtd on this host is
watched, and only if Nova runs with native threads, not under eventlet.
"""),
    cfg.IntOpt(
        'min_free_disk_mb',
        default=512,
        min=0,
        help="""
Free space that a running snapshot leaves on the host, in MiB, in addition to
``[DEFAULT]reserved_host_disk_mb``.

QEMU pauses a guest that has no space to write to. So the free space is checked
every second on the file systems that fill while the root disk is frozen: the
file system of ``[snapext]work_directory`` for ``backup``, of the instance
directory for ``external`` and for ``cold`` of a running guest, of the disks
themselves for ``internal``. A snapshot is aborted if less than this is free,
or if less would be free in two seconds at the present rate. The strategy
is not used in that case. Guests that write fast need a higher value, because
their rate is known only from one check to the next.

Possible values:

* 0: free space is not checked. A guest that is paused is resumed at the end
  of the snapshot and loses nothing.
* any number of MiB

Related options:

* ``[DEFAULT]reserved_host_disk_mb``
* ``[snapext]work_directory``
"""),
    cfg.IntOpt(
        'merge_min_write_kbps',
        default=1024,
        min=0,
        help="""
What a guest may always write while its overlay is merged, in KiB per second.

``external``, and ``cold`` of a running guest, merge an overlay into the root
disk while the guest writes on. If the guest writes faster than the disk takes
it, the merge would never end. So its writes to the root disk are then limited
in steps, with libvirt's block I/O tuning, until the merge gains on it, and at
the lowest to this value. They are limited to this value at once if the file
system of the instance directory runs short of space (see
``[snapext]min_free_disk_mb``). The log names each step. Afterwards it has the
block I/O tuning back that it had before.

A running guest is paused for the end of its merge: for about 0.1 seconds as a
rule, for one or two seconds if it is limited, and for 30 seconds at most. Some
versions of QEMU miss writes while they start a merge: there the guest is
paused for the start as well, also if the value is 0 (see the known defect
``missed-writes`` in the documentation).

The value counts in writes of 64 KiB, because the merge copies so much for each
smaller one: with 1024 the guest may always write 16 times a second. A much
smaller value may exceed the time that a guest's driver gives its disk.

If the guest still writes too fast for ``[snapext]operation_timeout``, the
merge is aborted. The guest then stays on its overlay and loses nothing, but
can't be moved or rebooted through Nova until the overlay is merged.

Possible values:

* 0: no guest is slowed down, or paused for the end. A merge that does not gain
  on its guest is aborted. If the host loses power at the end of a merge, an
  operator may have to find out whether the overlay or the disk is newer.
* any number of KiB per second

Related options:

* ``[snapext]operation_timeout``
* ``[snapext]min_free_disk_mb``
"""),
]

READ_OPTS = [
    cfg.IntOpt(
        'read_timeout',
        default=120,
        min=1,
        help="""
Seconds that the frozen disk may leave all reads unanswered before the snapshot
fails. In Ceph, also the seconds that the copy or the removal of an image, or
the search for its data, may make no progress.
"""),
    cfg.IntOpt(
        'read_rate_limit_mbps',
        default=0,
        min=0,
        help="""
Limit for the data that all snapshots on this host together read from frozen
disks, in MiB per second, so that storage stays available to guests. An upload
waits for its data and slows down too.

Possible values:

* 0: no limit
* any number of MiB per second
"""),
    cfg.IntOpt(
        'worker_niceness',
        default=10,
        min=0,
        max=19,
        help="""
nice(1) value of the threads that read, encode, hash and upload. On a host
without an idle CPU, guests and a Glance on the same host come first, and the
snapshot is faster because Glance is. If CPUs are idle, the value makes no
difference.

It has no effect under eventlet.
"""),
]

ENCODE_OPTS = [
    cfg.StrOpt(
        'detect_zeroes',
        default='auto',
        choices=[
            ('auto', 'If a sample of the disk, about 1 %, contains zeros'),
            ('always', 'Always'),
            ('never', 'Send every allocated cluster'),
        ],
        help="""
Detect zeros in the allocated data of the root disk, and leave them out of
qcow2 images.

The data is read only once for this. The size of the image is not known before
the upload, so it can't be announced to Glance. This option helps if the
storage can't report holes (a block device reports none), and if guests write
zeros.

Raw images always contain every byte of the disk. Compressed images never
contain a cluster of zeros.

Related options:

* ``[libvirt]snapshot_image_format``
* ``[libvirt]snapshot_compression``
"""),
    cfg.StrOpt(
        'compression_type',
        choices=[
            ('zstd', 'Several times as fast; readable by QEMU 5.1 and newer '
                     'that is built with zstd. Needs the Python package '
                     'zstandard'),
            ('zlib', 'As in compressed images of Nova; readable by all '
                     'versions'),
        ],
        help="""
Compression of qcow2 images if ``[libvirt]snapshot_compression`` is set. The
image is compressed while it is uploaded; nothing is staged on the host.

If it is not set, ``zstd`` is used where the Python package zstandard is
installed (``pip install nova-snapext[zstd]``), otherwise ``zlib``.

Related options:

* ``[libvirt]snapshot_compression``
"""),
    cfg.IntOpt(
        'compression_level',
        default=1,
        min=1,
        max=19,
        help="""
Compression level. A higher level makes the image smaller and the snapshot
slower. ``zlib`` has 9 levels and uses 9 for any higher value.
"""),
    cfg.IntOpt(
        'compression_threads',
        default=0,
        min=0,
        max=64,
        help="""
Number of threads that compress the image of one snapshot. 0: one for each CPU
that nova-compute may use.
"""),
    cfg.IntOpt(
        'qcow2_buffer_mb',
        default=32,
        min=1,
        help="""
Memory for data that a snapshot has read but can't send yet, in MiB. It is used
when zeros are left out of a qcow2 image or when it is compressed.

The tables of such an image are placed behind the amount of data that a sample
of the disk predicts, less this buffer. Data that belongs behind the tables and
exceeds the buffer is read and compressed a second time.

Compression takes another 16 MiB. It also has to keep the sizes of all clusters
until the tables are sent, up to 34 MiB for each TiB of data: the buffer
becomes smaller by as much, to 1 MiB at least.
"""),
    cfg.IntOpt(
        'compression_min_saving_percent',
        default=10,
        min=0,
        max=100,
        help="""
Minimum saving for compression, in percent of the data. If a sample of the disk
shows a lower saving, the image is not compressed. 0: always compress.
"""),
]

UPLOAD_OPTS = [
    cfg.IntOpt(
        'upload_chunk_kb',
        default=128,
        min=4,
        max=4096,
        help="""
Size of the chunks in which an image is passed to the HTTP client, in KiB.

python-glanceclient sends each one as an HTTP chunk. With chunks of more than
256 KiB, Glance's workers under gunicorn allocate and free memory for every
chunk, which costs a quarter of the upload time.
"""),
    cfg.IntOpt(
        'glance_reset_timeout',
        default=60,
        min=1,
        help="""
Seconds that Glance may take to detect a broken upload and to reset the image
to ``queued``. If it takes longer, the snapshot fails without another attempt.
If only the answer to an upload was lost, such as by the timeout of a proxy,
Glance may take as long to make the image active.

For an image that is made inside Ceph: seconds until Glance has made the image
active, and how much longer than its size explains Glance may read it for its
digest.

Related options:

* ``[glance]num_retries``
"""),
    cfg.IntOpt(
        'upload_stall_timeout',
        default=300,
        min=1,
        help="""
Seconds for which Glance may accept no data, or send no answer. An upload that
stalls for longer is broken off and tried again, as after a lost connection.

Glance answers an upload when its store has all of the data. A store that still
writes after the last byte needs time for that. If ``[glance]timeout`` is set,
it is used instead, as for all requests that Nova sends to Glance.

The deletion of the image of a failed snapshot may take this long in all,
whatever ``[glance]timeout`` is. If it takes longer, it is tried again later.

Related options:

* ``[glance]num_retries``
* ``[glance]timeout``
"""),
]

CEPH_OPTS = [
    cfg.StrOpt(
        'rbd_image_pool',
        help="""
Ceph pool of Glance's store, in the cluster of ``[libvirt]images_rbd_pool``.

With the strategy ``rbd``, a raw image is made inside Ceph, and its data does
not go through Glance's API, if the pool is known: it is the pool of the image
that the guest was booted from, if that is in the same cluster. This option
names the pool where the guest's image does not tell, as after an unshelve.
Without it, the disk of such a guest is streamed.

``[libvirt]rbd_user`` needs the right to write to the pool (for root disks
outside Ceph: ``rbd_image_user``), and Nova the right to add a location to an
image: ``[service_user]send_service_user_token``.

Related options:

* ``rbd_image_store``
* ``rbd_image_user``
"""),
    cfg.StrOpt(
        'rbd_image_user',
        help="""
Ceph user that writes images of root disks outside Ceph into the pool
``rbd_image_pool``. If it is not set, such disks are streamed to Glance.

If it is set, the host writes a raw image into Glance's pool itself, and
Glance is told where it is. Zeros are not written, and no data goes through
Glance's API. What was written is read back and compared first. With another
format than raw (``[libvirt]snapshot_image_format``), the disk is streamed.

The host needs Ceph's Python bindings, the ``ceph.conf`` of
``[libvirt]images_rbd_ceph_conf`` (the usual one, if that is not set), and this
user's key, readable by Nova's user. The user needs the right to write to the
pool. With this key, a host can read, change and delete all images in the pool:
do not set the option on a host that you do not trust with them.

Related options:

* ``rbd_image_pool``
* ``rbd_image_store``
"""),
    cfg.StrOpt(
        'rbd_image_store',
        help="""
Name of Glance's store that has ``rbd_image_pool``, as in Glance's
``enabled_backends``. It is not needed if Glance has one store.

If Glance has no store of this name, the disk is streamed. Glance 29 and newer
finds the store of an image by its pool. Older ones are given this name.
"""),
]

ALL_OPTS = [*STRATEGY_OPTS, *FREEZE_OPTS, *READ_OPTS, *ENCODE_OPTS,
            *UPLOAD_OPTS, *CEPH_OPTS]


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """Return the options, for oslo-config-generator."""
    return [(GROUP, ALL_OPTS)]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register the options."""
    conf.register_group(GROUP)
    conf.register_opts(ALL_OPTS, group=GROUP)


register_opts(CONF)
