"""Give what older versions made the fingerprints of this one, where only the way they are counted has changed.

    python bench/quality/rekey.py --folder runs/quality

Fingerprints of 0.1 counted the package's version, settings by the names of the keys, and inputs by labels; now they
count a code version for each stage, all settings that are not marked as placement, and inputs by what they are. For
every run in the folder this compares what both have counted. Where models, contents, settings and inputs are equal, the
manifest, the footers of the shards and the scores of the report get the new fingerprint, so that hours of runs need not
be made again; where anything else differs, the artifact stays as it is, and is named. Results are never touched: a
shard's rows are compared before and after.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fusion_ray.pipeline.graph import build_graph
from fusion_ray.recipe import Recipe, parse_recipe
from fusion_ray.report.stage import scores_fingerprint, trained_models
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.filesystem import write_bytes
from fusion_ray.storage.run_folder import MANIFEST
from fusion_ray.storage.shards import write_shard

_FOOTER_KEY = b"fusion_ray"
# Settings that are gone, with the value that they must have had.
_GONE = {"targets": {"gate": "none"}}


def main() -> None:
    """Rekey every run that a recipe lies beside."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    given = parser.parse_args()
    for file in sorted((given.folder / "runs").glob("*.yaml")):
        for line in rekey_run(_read_recipe(file)):
            print(f"{file.stem}: {line}")


def _read_recipe(file: Path) -> Recipe:
    data = yaml.safe_load(file.read_text())
    for section, settings in _GONE.items():
        for key, value in settings.items():
            if data[section].get(key) == value:
                del data[section][key]
    return parse_recipe(data, where=str(file))


def rekey_run(recipe: Recipe) -> list[str]:
    """Rekey the artifacts of one run; what happened to each, in words."""
    old: dict[str, str] = {}
    said = []
    for artifact in build_graph(recipe, need_inputs=False):
        path = Path(artifact.folder, MANIFEST)
        if not path.is_file():
            said.append(f"{artifact}: not made")
            continue
        manifest = json.loads(path.read_text())
        old[artifact.folder] = manifest["fingerprint"]
        if manifest["fingerprint"] == artifact.fingerprint:
            said.append(f"{artifact}: has its new fingerprint")
            continue
        differs = _differences(artifact, manifest["parts"], old)
        if differs:
            said.append(f"{artifact}: left alone, for these differ: {', '.join(differs)}")
            continue
        if artifact.stage == "report":
            _rekey_scores(recipe, artifact, old)
        shards = [_rekey_shard(artifact.folder, shard["path"], artifact.fingerprint) for shard in manifest["shards"]]
        manifest |= {"fingerprint": artifact.fingerprint, "parts": artifact.parts, "shards": shards}
        write_bytes(str(path), json.dumps(manifest, indent=1, sort_keys=True).encode())
        said.append(f"{artifact}: {len(shards)} shards rekeyed")
    return said


def _differences(artifact: Artifact, before: dict[str, Any], old: dict[str, str]) -> list[str]:
    """What the old fingerprint counted otherwise, by name; inputs by the old fingerprints of the same folders."""
    counted = {key: value for key, value in before.items() if key.split()[0] in ("setting", "model", "content")}
    for section, settings in _GONE.items():
        for key, value in settings.items():
            if artifact.stage == section and counted.get(f"setting {key}") == value:
                del counted[f"setting {key}"]
    now = {key: value for key, value in artifact.parts.items() if key.split()[0] in ("setting", "model", "content")}
    now = json.loads(json.dumps(now))
    differs = sorted(key for key in counted.keys() | now.keys() if counted.get(key, "-") != now.get(key, "-"))
    inputs = sorted(value for key, value in before.items() if key.startswith("input "))
    if inputs != sorted(old.get(made.folder, "-") for made in artifact.inputs):
        differs.append("inputs")
    return differs


def _rekey_shard(folder: str, path: str, fingerprint: str) -> dict[str, Any]:
    """Write a shard again with another fingerprint in its footer; its new record."""
    parquet = pq.ParquetFile(Path(folder, path))
    table = parquet.read()
    facts = json.loads(parquet.schema_arrow.metadata[_FOOTER_KEY])["facts"]
    record = write_shard(folder, path, table, fingerprint, facts)
    assert pq.read_table(pa.BufferReader(Path(folder, path).read_bytes())).equals(table), f"{folder}/{path}"
    return record.__dict__


def _rekey_scores(recipe: Recipe, report: Artifact, old: dict[str, str]) -> None:
    corpus = report.input_of("corpus")
    for model in trained_models(report):
        before = scores_fingerprint(recipe, old[corpus.folder], old[model.artifact.folder])
        for file in sorted(Path(model.folder).rglob("*.parquet")):
            footer = json.loads(pq.ParquetFile(file).schema_arrow.metadata[_FOOTER_KEY])
            if footer["fingerprint"] == before:
                path = file.relative_to(model.folder).as_posix()
                _rekey_shard(
                    model.folder, path, scores_fingerprint(recipe, corpus.fingerprint, model.artifact.fingerprint)
                )


if __name__ == "__main__":
    main()
