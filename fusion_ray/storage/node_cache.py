"""Folders of a store as folders of this node, for libraries that only open plain files.

Each is fetched once a node, into FUSION_RAY_CACHE (default: the user's cache folder). What lies there is named by the
place and by every file's size and time of change, so a folder that changed is fetched anew and never mixed.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from fusion_ray.errors import MissingArtifactError
from fusion_ray.storage.filesystem import copy_folder, join, list_files, locate, stamp


def fetch_folder(uri: str, patterns: Sequence[str] = ("*",)) -> Path:
    """A folder of this machine with the files of `uri`: the folder itself where it is local, else a copy.

    Two processes that fetch the same folder at once each make a copy; the first one whole is kept.

    Args:
        uri: A folder; what lies in folders below it is not fetched.
        patterns: Only files with such names.

    Raises:
        MissingArtifactError: There is nothing.
    """
    place = locate(uri)
    if place.is_local:
        return Path(place.path)
    names = [name for name in list_files(uri) if any(fnmatch(name, pattern) for pattern in patterns)]
    if not names:
        raise MissingArtifactError(f"{uri}: no such folder, or nothing in it.")
    content = "".join(f"{name}:{stamp(join(uri, name))}\n" for name in names)
    here = _root() / hashlib.sha256(f"{uri}\n{content}".encode()).hexdigest()[:32]
    if here.is_dir():
        return here
    here.parent.mkdir(parents=True, exist_ok=True)
    growing = Path(tempfile.mkdtemp(prefix=f".{here.name}.", dir=here.parent))
    try:
        copy_folder(uri, str(growing), names)
        growing.rename(here)
    except OSError:
        if not here.is_dir():  # Else another process was first.
            raise
    finally:
        shutil.rmtree(growing, ignore_errors=True)
    return here


def _root() -> Path:
    given = os.environ.get("FUSION_RAY_CACHE")
    if given:
        return Path(given) / "folders"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "fusion_ray" / "folders"
