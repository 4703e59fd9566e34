"""Shards, manifests and files: whole or absent, and checked before use."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusion_ray.errors import ArtifactError, CorruptArtifactError, MissingArtifactError, RecipeError
from fusion_ray.storage import peak
from fusion_ray.storage.artifacts import Artifact, read_manifest, retract_manifest, write_manifest
from fusion_ray.storage.filesystem import delete, exists, join, list_files, locate, read_bytes, write_bytes
from fusion_ray.storage.model_files import ModelFiles, find_model
from fusion_ray.storage.peak import forget_peak, note_worker, read_peak, take_peaks
from fusion_ray.storage.rejections import settle_rejections
from fusion_ray.storage.run_folder import MANIFEST
from fusion_ray.storage.shards import find_shard, read_shard, shard_path, write_shard
from fusion_ray.storage.topk_codec import compact_topk

TABLE = pa.table({"id": ["a", "b", "c"], "values": [[1, 2], None, [3]]})


def artifact(folder: Path, **settings: object) -> Artifact:
    model = ModelFiles("x", "/x", "", {"config.json": "1"})
    run, models, contents = str(folder), {"pivot": model}, {"chats": "2"}
    return Artifact(run=run, stage="fused", source="math", settings=settings, models=models, contents=contents)


def test_a_shard_comes_back_with_its_rows_and_facts(tmp_path: Path) -> None:
    path = shard_path("train", 3)
    record = write_shard(str(tmp_path), path, TABLE, "f1", {"rejected": [["b", "why"]]})
    assert path == "train/00003.parquet"
    assert read_shard(str(tmp_path), record).to_pydict() == TABLE.to_pydict()
    assert find_shard(str(tmp_path), path, "f1") == record


def test_equal_shards_have_equal_bytes(tmp_path: Path) -> None:
    first = write_shard(str(tmp_path / "a"), "0.parquet", TABLE, "f1", {"b": 1, "a": 2})
    second = write_shard(str(tmp_path / "b"), "0.parquet", TABLE, "f1", {"a": 2, "b": 1})
    assert first.sha256 == second.sha256


def test_a_shard_of_another_fingerprint_counts_as_not_made(tmp_path: Path) -> None:
    write_shard(str(tmp_path), "0.parquet", TABLE, "f1")
    assert find_shard(str(tmp_path), "0.parquet", "f2") is None
    assert find_shard(str(tmp_path), "1.parquet", "f1") is None


def test_a_truncated_shard_counts_as_not_made(tmp_path: Path) -> None:
    write_shard(str(tmp_path), "0.parquet", TABLE, "f1")
    data = (tmp_path / "0.parquet").read_bytes()
    (tmp_path / "0.parquet").write_bytes(data[: len(data) // 2])
    assert find_shard(str(tmp_path), "0.parquet", "f1") is None


def test_every_flipped_bit_is_found_before_use(tmp_path: Path) -> None:
    record = write_shard(str(tmp_path), "0.parquet", TABLE, "f1")
    data = (tmp_path / "0.parquet").read_bytes()
    chooser = random.Random(0)
    for _ in range(100):
        place, bit = chooser.randrange(len(data)), chooser.randrange(8)
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        (tmp_path / "0.parquet").write_bytes(bytes(flipped))
        with pytest.raises(CorruptArtifactError, match=r"0\.parquet.*run again"):
            read_shard(str(tmp_path), record)


def test_a_shard_that_was_damaged_before_its_manifest_was_written_counts_as_not_made(tmp_path: Path) -> None:
    import toys.fused as toy_fused

    tables = {"texts.parquet": TABLE, "fused.parquet": toy_fused.toy_fused(60)}
    chooser = random.Random(1)
    for name, table in tables.items():
        record = write_shard(str(tmp_path), name, table, "f1", {"rejected": [], "answer_tokens": 7})
        data = (tmp_path / name).read_bytes()
        assert find_shard(str(tmp_path), name, "f1") == record
        for _ in range(100):
            flipped = bytearray(data)
            flipped[chooser.randrange(len(data))] ^= 1 << chooser.randrange(8)
            (tmp_path / name).write_bytes(bytes(flipped))
            assert find_shard(str(tmp_path), name, "f1") is None
        for _ in range(20):
            (tmp_path / name).write_bytes(data[: chooser.randrange(len(data))])
            assert find_shard(str(tmp_path), name, "f1") is None
        (tmp_path / name).write_bytes(data)
        assert find_shard(str(tmp_path), name, "f1") == record


def test_the_peak_is_the_most_memory_held_since_it_was_forgotten() -> None:
    forget_peak()
    before = read_peak()
    held = np.ones(40 << 20, dtype=np.uint8)
    held_peak = read_peak()
    del held
    assert held_peak >= before + (39 << 20)
    assert read_peak() >= held_peak - (1 << 20), "the system counts in batches"


def test_a_manifest_says_how_much_memory_its_artifact_took(tmp_path: Path) -> None:
    note_worker(5)
    note_worker(3)
    made = artifact(tmp_path)
    write_manifest(made, seconds=1.0)
    assert read_manifest(made.folder).peak_bytes["worker"] == 5
    assert read_manifest(made.folder).peak_bytes["driver"] > 1 << 20
    write_manifest(made, seconds=1.0)
    assert read_manifest(made.folder).peak_bytes["worker"] == 0, "the next artifact starts anew"


def test_a_manifest_tells_what_changed(tmp_path: Path) -> None:
    made = artifact(tmp_path, align={"kind": "bytes"}, top_k=10)
    write_manifest(made, seconds=1.0)
    manifest = read_manifest(made.folder)
    assert made.why_stale(manifest) == []
    changed = artifact(tmp_path, align={"kind": "ms"}, top_k=10)
    assert changed.why_stale(manifest) == ["align.kind was 'bytes', is 'ms'"]


def test_a_changed_input_changes_everything_after_it(tmp_path: Path) -> None:
    before, after = (artifact(tmp_path, top_k=k) for k in (5, 6))
    first, second = (Artifact(run="", stage="targets", model="math", inputs=(fused,)) for fused in (before, after))
    assert first.fingerprint != second.fingerprint


def test_making_an_artifact_anew_removes_what_a_killed_process_left_half_written(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    folder = Path(made.folder)
    whole, half = folder / "train" / "00000.parquet", folder / "train" / ".00000.parquet.0a1b2c3d.tmp"
    whole.parent.mkdir(parents=True)
    kept = folder / "train" / ".kept"
    for path in (whole, half, kept, folder / "chat.tmp"):
        path.write_bytes(b"")
    retract_manifest(made.folder)
    assert not half.exists()
    assert whole.exists() and kept.exists() and (folder / "chat.tmp").exists()


def test_an_artifact_without_manifest_does_not_exist(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    write_manifest(made, seconds=1.0)
    retract_manifest(made.folder)
    with pytest.raises(MissingArtifactError, match="never finished"):
        read_manifest(made.folder)
    Path(made.folder, MANIFEST).write_text('{"stage": "fused"')
    with pytest.raises(CorruptArtifactError):
        read_manifest(made.folder)


def test_numbers_that_are_not_finite_never_reach_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_manifest(artifact(tmp_path), seconds=1.0, facts={"loss": float("nan")})
    assert not exists(join(artifact(tmp_path).folder, MANIFEST))


def test_too_many_rejected_rows_stop_the_stage_and_are_listed(tmp_path: Path) -> None:
    record = write_shard(str(tmp_path), "0.parquet", TABLE, "f1", {"rejected": [["b", "no answer"]]})
    assert settle_rejections(artifact(tmp_path), [record], cap=0.5) == 1
    assert "no answer" in Path(artifact(tmp_path).folder, "rejected", "rows.jsonl").read_text()
    with pytest.raises(ArtifactError, match=r"1 of 3 rows.*b: no answer"):
        settle_rejections(artifact(tmp_path), [record], cap=0.1)
    assert settle_rejections(artifact(tmp_path), [record], cap=0.1, of=10) == 1, "these rows are one split of ten"
    with pytest.raises(ArtifactError, match="1 of 9 rows"):
        settle_rejections(artifact(tmp_path), [record], cap=0.1, of=9)


def test_files_are_written_whole_and_listed(tmp_path: Path) -> None:
    folder = str(tmp_path / "new")
    write_bytes(join(folder, "a", "b.txt"), b"text")
    assert read_bytes(join(folder, "a", "b.txt")) == b"text"
    assert list_files(folder, recursive=True) == ["a/b.txt"]
    delete(folder)
    assert not exists(folder)
    delete(folder)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
def test_a_name_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="leave this folder"):
        join("runs/x", name)


def test_an_unknown_scheme_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="s3://"):
        locate("ftpx://host/path")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], "no config.json"),
        (["config.json"], "no tokenizer"),
        (["config.json", "tokenizer.json"], "no weights"),
        (["config.json", "tokenizer.json", "pytorch_model.bin"], "never read"),
    ],
)
def test_a_folder_that_is_no_model_says_what_it_lacks(files: list[str], expected: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(RecipeError, match=expected):
        find_model(str(tmp_path))


def test_a_missing_folder_is_not_taken_for_a_hub_model() -> None:
    with pytest.raises(RecipeError, match="no such folder"):
        find_model("./models/nowhere")


def test_a_models_fingerprint_is_its_content_not_its_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            (tmp_path / name / file).write_text("{}")
    first, second = (find_model(str(tmp_path / name)).fingerprint for name in ("a", "b"))
    assert first == second
    (tmp_path / "b" / "model.safetensors").write_text("{ }")
    assert find_model(str(tmp_path / "b")).fingerprint != first


def test_a_compact_shard_reads_like_the_plain_one(tmp_path: Path) -> None:
    logprobs = pa.array([[-0.5, -1.5, -0.25, -2.0], None], pa.list_(pa.float32()))
    plain = pa.table(
        {
            "id": ["a", "bad"],
            "real_logprobs": pa.array([[-0.5, -2.0], None], pa.list_(pa.float32())),
            "topk_ids": pa.array([[3, 7, 3, 9], None], pa.list_(pa.int32())),
            "topk_logprobs": logprobs,
            "reason": [None, "why"],
        }
    )
    record = write_shard(str(tmp_path), "0.parquet", compact_topk(plain), "f1")
    back = read_shard(str(tmp_path), record)
    assert back["topk_ids"].to_pylist() == plain["topk_ids"].to_pylist()
    assert back["topk_logprobs"][0].as_py() == pytest.approx(logprobs[0].as_py(), abs=0.01)
    assert read_shard(str(tmp_path), record, ["id", "real_logprobs"]).column_names == ["id", "real_logprobs"]


def test_rejected_rows_are_listed_line_by_line_and_the_first_three_are_named(tmp_path: Path) -> None:
    rows = {f"r{n}": f"naïve {n}" for n in range(4)}
    records = [
        write_shard(str(tmp_path), path, TABLE, "f1", {"rejected": part})
        for path, part in (("0.parquet", [*rows.items()][:3]), ("1.parquet", [*rows.items()][3:]))
    ]
    made = artifact(tmp_path)
    listing = Path(made.folder, "rejected", "rows.jsonl")
    assert settle_rejections(made, [write_shard(str(tmp_path), "2.parquet", TABLE, "f", {"rejected": []})], 0) == 0
    assert settle_rejections(made, [], 0) == 0 and not listing.exists()
    assert settle_rejections(made, records, cap=4 / 6) == 4
    with pytest.raises(ArtifactError, match=r"4 of 6 .* \(66\.6%\) .* r0: naïve 0; r1: naïve 1; r2: naïve 2\. All are"):
        settle_rejections(made, records, cap=0.666)
    assert listing.read_text().splitlines() == [
        f'{{"id": "r{n}", "reason": "naïve {n}", "shard": "{n // 3}.parquet"}}' for n in range(4)
    ]


def test_a_shard_that_is_read_and_written_again_has_the_same_bytes(tmp_path: Path) -> None:
    kind = pa.list_(pa.field("item", pa.struct([pa.field("a", pa.list_(pa.int8())), pa.field("b", pa.string())])))
    table = pa.table({"x": pa.array([[{"a": [1], "b": "c"}], None], kind)}).replace_schema_metadata({"k": "v"})
    first = write_shard(str(tmp_path), "0.parquet", table, "f")
    again = write_shard(str(tmp_path), "1.parquet", read_shard(str(tmp_path), first), "f")
    assert again.sha256 == first.sha256 and (again.rows, again.bytes) == (2, (tmp_path / "0.parquet").stat().st_size)
    assert find_shard(str(tmp_path), "1.parquet", "f") == again
    (tmp_path / "2.parquet").write_text("no such thing")
    assert find_shard(str(tmp_path), "2.parquet", "f") is None
    pq.write_table(table, tmp_path / "3.parquet")
    assert find_shard(str(tmp_path), "3.parquet", "f") is None


def test_a_system_that_tells_no_memory_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "status").write_text("Name:\ta:b\nVmHWM:\t    3 kB\nThreads:\t1\n")
    monkeypatch.setattr(peak, "_STATUS", tmp_path / "status")
    assert read_peak() == 3072
    (tmp_path / "status").write_text("Name:\ta\n")
    assert read_peak() == 0
    monkeypatch.setattr(peak, "_STATUS", tmp_path / "none")
    assert read_peak() == 0
    with ThreadPoolExecutor() as pool:
        assert pool.submit(take_peaks).result() == {"driver": 0, "worker": 0}
        assert pool.submit(lambda: [note_worker(3), note_worker(1), take_peaks()][-1]).result()["worker"] == 3
