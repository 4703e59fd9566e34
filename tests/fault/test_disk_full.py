"""A full disk: the error says so, nothing half-written is left, and what was there stays."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from toys.small_disk import small_disk

from fusion_ray.errors import ArtifactError
from fusion_ray.storage.checkpoint_writer import CheckpointWriter, Slot
from fusion_ray.storage.filesystem import read_bytes, write_bytes
from fusion_ray.storage.shards import read_shard, write_shard


def test_a_file_that_does_not_fit_leaves_nothing_and_the_next_one_fits(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk:
        write_bytes(f"{disk.folder}/small", b"kept")
        with pytest.raises(ArtifactError, match=r"the disk is full.*run again"):
            write_bytes(f"{disk.folder}/large", bytes(2 << 20))
        assert [path.name for path in disk.folder.iterdir()] == ["small"]
        assert read_bytes(f"{disk.folder}/small") == b"kept"
        disk.grow(4096)
        write_bytes(f"{disk.folder}/large", bytes(2 << 20))


def test_a_shard_that_does_not_fit_is_not_there(tmp_path: Path) -> None:
    noise = pa.table({"noise": np.random.default_rng(0).integers(0, 2**62, 200_000)})
    with small_disk(tmp_path / "disk", 1024) as disk:
        with pytest.raises(ArtifactError, match=r"train/00000\.parquet: the disk is full"):
            write_shard(str(disk.folder), "train/00000.parquet", noise, "f")
        assert not list((disk.folder / "train").iterdir())
        disk.grow(4096)
        record = write_shard(str(disk.folder), "train/00000.parquet", noise, "f")
        assert read_shard(str(disk.folder), record).equals(noise)


def test_weights_that_do_not_fit_are_not_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk:
        uri = f"{disk.folder}/model.safetensors"
        with (
            pytest.raises(ArtifactError, match="the disk is full"),
            CheckpointWriter(uri, [Slot("a", "F32", (500_000,))]) as writer,
        ):
            writer.write(np.ones(500_000, dtype=np.float32))
        assert not list(disk.folder.iterdir())
