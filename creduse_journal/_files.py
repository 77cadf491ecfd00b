"""Where a journal's file is: its permissions, and whether its file system keeps what it has synced.

SQL does not belong here.
"""

import os
import warnings
from pathlib import Path
from typing import Final

from ._entries import JournalError

_NETWORK: Final = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "davfs",
        "fuse.blobfuse2",
        "fuse.cephfs",
        "fuse.davfs",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.juicefs",
        "fuse.mount-s3",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "fuse.vmhgfs-fuse",
        "gpfs",
        "glusterfs",
        "gfs2",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
    }
)
"""File systems on which locks and syncs cannot be relied upon."""
_CAN_SYNC_DIRECTORIES: Final = os.name == "posix"
_IN_MEMORY: Final = frozenset({"ramfs", "tmpfs"})


def place_of(path: Path) -> Path:
    """Return where a file is. SQLite's names for its log and locks follow from the name of a file.

    Raises:
        JournalError: It cannot be reached, or the file has several names (hard links), each of which
            would have its own log.
    """
    try:
        if path.is_symlink():
            path = path.resolve()
        names = path.stat().st_nlink if path.is_file() else 1
    except OSError as error:
        raise JournalError(f"{path} cannot be opened: {error.strerror}") from error
    if names > 1:
        raise JournalError(f"{path} has several names (hard links): remove all but one")
    return path


def prepare(path: Path) -> None:
    """Make the file if there is none, so that only its owner can read it. Refuse a network's.

    Raises:
        JournalError: The file is on a network file system, or cannot be made.
    """
    kind = file_system(path.parent)
    if kind in _NETWORK:
        raise JournalError(
            f"{path} is on a network file system ({kind}), whose locks and syncs are not reliable: "
            "put the journal on a local disk"
        )
    if kind in _IN_MEMORY:
        warnings.warn(
            f"{path} is in memory ({kind}): a restart of the machine forgets the journal",
            stacklevel=6,
        )
    make_private(path)


def make_private(path: Path) -> None:
    """Make a file that only its owner can read, if there is none."""
    try:
        # Only a new file is opened here. To close any descriptor of an open database would lose its locks.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        _sync_directory(path.parent)
    except FileExistsError:
        pass
    except OSError as error:
        raise JournalError(f"{path} cannot be opened: {error.strerror}") from error


def _sync_directory(directory: Path) -> None:
    """Make sure that the disk keeps the name of a new file."""
    if not _CAN_SYNC_DIRECTORIES:
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_system(directory: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """Return the kind of a directory's file system, where the system shows it."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        place = directory.resolve(strict=True)
    except OSError:
        return None
    found, kind = Path("/"), None
    for line in lines:
        _, mounted, name, *_ = line.split(" ")
        point = Path(mounted.replace("\\040", " ").replace("\\011", "\t"))
        # Of two mounts at one place, the later one counts.
        if place.is_relative_to(point) and len(point.parts) >= len(found.parts):
            found, kind = point, name
    return kind
