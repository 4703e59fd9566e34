"""Send a merged model to the Hugging Face Hub, or only say what would be sent.

The token is read from the environment variable HF_TOKEN alone, goes to the Hub alone, and never into a message.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from fusion_ray.errors import FusionRayError, MissingArtifactError, RecipeError
from fusion_ray.storage.run_folder import MANIFEST, find_merged

TOKEN_VARIABLE = "HF_TOKEN"
_NOT_SENT = (MANIFEST,)
_CARDS = ("README.md", "merge_config.yaml")
_LOCAL_PATH = re.compile(r"(?<![\w/.:])(?:\.{0,2}|~)/[\w.~-]+(?:/[\w.-]+)*")


class Parcel(NamedTuple):
    """What is to be sent.

    Attributes:
        folder: The model folder.
        files: Size in bytes by name.
        local_paths: Paths of this machine that the card or the merge configuration would make public.
        url: Address of the commit once it is sent.
    """

    folder: Path
    files: dict[str, int]
    local_paths: tuple[str, ...]
    url: str = ""


def pack(run: str) -> Parcel:
    """List what a push would send.

    Args:
        run: Folder of a finished run, or a model folder such as `fusion-ray merge` writes.

    Raises:
        MissingArtifactError: There is no finished merged model.
    """
    folder = Path(find_merged(run))
    whole = (folder / "config.json").is_file() and (folder == Path(run) or (folder / MANIFEST).is_file())
    if not whole or not any(folder.glob("*.safetensors")):
        raise MissingArtifactError(
            f"{run}: no finished merged model there. Expected a run's folder such as runs/demo, or a model folder."
        )
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    files = {path.name: path.stat().st_size for path in paths if path.name not in _NOT_SENT}
    texts = [(folder / name).read_text(encoding="utf-8") for name in _CARDS if name in files]
    found = sorted({path for text in texts for path in _LOCAL_PATH.findall(text)})
    return Parcel(folder, files, tuple(found))


def send(parcel: Parcel, repository: str, *, private: bool) -> Parcel:
    """Make the repository if it is not there, and put all files into it as one commit.

    Args:
        parcel: From `pack`.
        repository: `user/name` at the Hub.
        private: Whether a new repository is private.

    Returns:
        The parcel, with the address of the commit.

    Raises:
        RecipeError: HF_TOKEN is not set, or the repository's name is none.
        FusionRayError: The Hub refused or could not be reached.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise RecipeError(
            f"push: the environment variable {TOKEN_VARIABLE} is not set. Put a token in it that may write."
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise RecipeError(f"push: '{repository}' is no repository. Expected user/name.")
    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository,
            folder_path=parcel.folder,
            allow_patterns=list(parcel.files),
            commit_message="Merged with fusion_ray",
        )
    except Exception as error:  # The Hub's client and the network raise errors of many kinds.
        reason = f"{type(error).__name__}: {error}".replace(token, "***")
        raise FusionRayError(
            f"push: {repository} could not be written ({reason}). Check the name, that the token may write there, and "
            "that HF_HUB_OFFLINE is not set."
        ) from None
    return parcel._replace(url=str(commit.commit_url))
