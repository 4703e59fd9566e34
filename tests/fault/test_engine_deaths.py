"""The process of a scoring actor, without Ray around it: what it leaves behind when its engine dies, and what the next
one makes of it. tests/fault/test_distributions_deaths.py has Ray start it anew."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from toys.dying import dying_artifact, dying_recipe, fail, opens, vanish

from fusion_ray.distributions.stage import _Render, _Score
from fusion_ray.models.opening import open_scorer
from fusion_ray.storage.artifacts import read_manifest
from fusion_ray.storage.shards import find_shard, read_shard

PLANTED_AT = 7
ACTOR = """
import sys
from pathlib import Path
from test_engine_deaths import score_first_shard
import toys.dying as toy_dying
score_first_shard(Path(sys.argv[1]), sys.argv[2], getattr(toy_dying, sys.argv[3]))
"""


def score_first_shard(folder: Path, runs: str, death) -> None:
    """What the actor does with its first shard."""
    recipe = dying_recipe(folder, runs, (PLANTED_AT,), rows=10)
    artifact = dying_artifact(recipe)
    todo = list(read_manifest(artifact.chats.folder).shards)
    render = _Render(recipe, artifact, todo)
    actor = _Score(render, opens(death) if death else open_scorer)
    (answer,) = actor(pa.table({"id": [0]}))["answer"].to_pylist()
    assert json.loads(answer)["result"]["rows"] == 10


def start_actor(folder: Path, runs: str, death: str) -> int:
    """Run the actor in a process of its own; gives how it ended."""
    paths = {"PYTHONPATH": ":".join([*sys.path, str(Path(__file__).parent)])}
    command = [sys.executable, "-c", ACTOR, str(folder), runs, death]
    return subprocess.run(command, env=os.environ | paths, capture_output=True, timeout=200, check=False).returncode


@pytest.mark.parametrize(
    ("death", "code", "why"),
    [
        pytest.param(vanish, -9, "without a word", marks=pytest.mark.slow),
        (fail, 1, "illegal memory access"),
    ],
)
def test_a_process_started_anew_ends_with_the_row_that_kills_it_rejected(tmp_path: Path, death, code, why) -> None:
    recipe = dying_recipe(tmp_path, "toy", (PLANTED_AT,), rows=10)
    artifact = dying_artifact(recipe, lay_out=True)
    codes = [start_actor(tmp_path, "toy", death.__name__)]
    while codes[-1] and len(codes) < 6:
        codes.append(start_actor(tmp_path, "toy", death.__name__))
    assert codes == [code, code, code, 0]  # twice over the whole shard, once over the row
    (shard,) = read_manifest(artifact.chats.folder).shards
    record = find_shard(artifact.folder, shard.path, artifact.fingerprint)
    assert record is not None and [identity for identity, _ in record.facts["rejected"]] == [f"row-{PLANTED_AT}"]
    assert why in record.facts["rejected"][0][1]
    table = read_shard(artifact.folder, record)
    assert [row["reason"] is None for row in table.to_pylist()] == [n != PLANTED_AT for n in range(10)]
    assert not [path for path in (Path(artifact.folder) / "attempts").rglob("*") if path.is_file()]
