"""Files by URI on any pyarrow filesystem: local folders, s3://, gs://, hdfs://.

A file appears whole or not at all: locally by writing beside it, fsync and rename; on an object store by the
store's own rule that an object exists once its upload is complete.
"""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from pyarrow import fs

from fusion_ray.errors import ArtifactError, MissingArtifactError, RecipeError

_CHUNK_BYTES = 8 << 20


class Place(NamedTuple):
    """A filesystem and a path on it."""

    filesystem: fs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        """Whether the path can be opened by any library on this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)


def locate(uri: str) -> Place:
    """Find the filesystem of a URI or local path.

    s3:// means Amazon's, or the store that the environment variable AWS_ENDPOINT_URL names, as for AWS's own tools.

    Raises:
        RecipeError: The scheme is unknown, the store's settings are missing, or there are credentials in the address.
    """
    if "://" not in uri:
        return Place(fs.LocalFileSystem(), str(Path(uri).absolute()))
    if "@" in uri.partition("://")[2].partition("/")[0]:
        raise RecipeError(
            f"{uri.partition('://')[0]}://...: credentials have no place in an address, which is written to manifests "
            "and logs. Set them in the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS)."
        )
    try:
        filesystem, path = fs.FileSystem.from_uri(uri + _endpoint(uri))
    except (OSError, ValueError, NotImplementedError) as error:
        raise RecipeError(
            f"{uri}: no filesystem for this address ({error}). Use a local path, s3://, gs:// or hdfs://."
        ) from error
    return Place(filesystem, path)


def _endpoint(uri: str) -> str:
    """What an s3:// address needs at its end: pyarrow does not read AWS_ENDPOINT_URL by itself."""
    scheme, _, host = os.environ.get("AWS_ENDPOINT_URL", "").rstrip("/").rpartition("://")
    if not host or not uri.startswith("s3://") or "?" in uri:
        return ""
    return f"?{urlencode({'endpoint_override': host, 'scheme': scheme or 'https'})}"


def absolute(uri: str) -> str:
    """The same place as an address that does not depend on the working folder."""
    return uri if "://" in uri else str(Path(uri).absolute())


def join(uri: str, *parts: str) -> str:
    """Append names to a URI; a name that would leave the folder is refused.

    Raises:
        RecipeError: A part is absolute or contains `..`.
    """
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise RecipeError(f"{uri}: the name {part!r} would leave this folder. Use a plain relative name.")
    return "/".join([uri.rstrip("/"), *parts])


def local_path(uri: str) -> Path:
    """The path of a URI that must be local, for libraries that only open plain files.

    Raises:
        RecipeError: The URI is on a remote store.
    """
    place = locate(uri)
    if not place.is_local:
        raise RecipeError(f"{uri}: a local folder is needed here. Mount or copy it first.")
    return Path(place.path)


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    place = locate(uri)
    return bool(place.filesystem.get_file_info(place.path).type != fs.FileType.NotFound)


def list_files(uri: str, recursive: bool = False) -> list[str]:
    """Paths of the files in a folder relative to it, sorted; empty when there is no such folder."""
    place = locate(uri)
    selector = fs.FileSelector(place.path, allow_not_found=True, recursive=recursive)
    infos = place.filesystem.get_file_info(selector)
    root = place.path.rstrip("/") + "/"
    return sorted(info.path.removeprefix(root) for info in infos if info.type == fs.FileType.File)


def read_bytes(uri: str) -> bytes:
    """Read a whole file.

    Raises:
        MissingArtifactError: There is no such file.
    """
    place = locate(uri)
    try:
        with place.filesystem.open_input_stream(place.path) as stream:
            return bytes(stream.read())
    except FileNotFoundError as error:
        raise MissingArtifactError(f"{uri}: no such file.") from error


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file so that readers see all of it or none.

    Raises:
        ArtifactError: The disk is full.
    """
    place = locate(uri)
    if not place.is_local:
        with place.filesystem.open_output_stream(place.path) as stream:
            stream.write(data)
        return
    target = Path(place.path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    with naming_a_full_disk(uri):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming_a_full_disk(uri: str) -> Iterator[None]:
    """Raise an ArtifactError that says what to do where the block finds the disk, or the user's share of it, full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ArtifactError(
            f"{uri}: the disk is full ({error.strerror}). Nothing half-written is left and what was finished stays: "
            "free space, or copy the run folder to a larger disk and set `runs`, then run again to go on."
        ) from error


def delete(uri: str) -> None:
    """Remove a file or a folder with all that is in it; nothing happens when it is not there."""
    place = locate(uri)
    kind = place.filesystem.get_file_info(place.path).type
    if kind == fs.FileType.Directory:
        with suppress(FileNotFoundError):  # On gs:// a folder may have no object of its own, only what is in it.
            place.filesystem.delete_dir(place.path)
    elif kind == fs.FileType.File:
        place.filesystem.delete_file(place.path)


def sha256_of_file(uri: str) -> str:
    """Hash a file without holding it in memory."""
    place = locate(uri)
    digest = hashlib.sha256()
    try:
        with place.filesystem.open_input_stream(place.path) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise MissingArtifactError(f"{uri}: no such file.") from error
    return digest.hexdigest()


def stamp(uri: str) -> str:
    """A hash of a file's size and time of change: what a store tells without reading the file.

    Raises:
        MissingArtifactError: There is no such file.
    """
    place = locate(uri)
    info = place.filesystem.get_file_info(place.path)
    if info.type != fs.FileType.File:
        raise MissingArtifactError(f"{uri}: no such file.")
    return hashlib.sha256(f"{info.size}:{info.mtime_ns}".encode()).hexdigest()


def copy_folder(source: str, target: str, names: list[str]) -> None:
    """Copy named files of a folder to another one, between any two filesystems."""
    origin, destination = locate(source), locate(target)
    if destination.is_local:
        Path(destination.path).mkdir(parents=True, exist_ok=True)
    for name in names:
        fs.copy_files(
            f"{origin.path}/{name}",
            f"{destination.path}/{name}",
            origin.filesystem,
            destination.filesystem,
            chunk_size=_CHUNK_BYTES,
        )
