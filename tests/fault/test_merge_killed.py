"""A merge that is killed: nothing half-written is visible, and doing it again ends in the same bytes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from toys.checkpoints import moved, save_toy, toy_tensors

from fusion_ray.merged.from_yaml import merge_from_yaml

FILE_BYTES = 400_000
# Merges, and stops for ever in the middle of the third file.
CODE = """
import sys, threading
from pathlib import Path
from fusion_ray.merged.from_yaml import merge_from_yaml
from fusion_ray.storage.checkpoint_writer import Part

def write_until_the_third_file(part, values, write=Part.write):
    write(part, values)
    if len(list(Path(sys.argv[2]).glob("model-*.safetensors"))) == 2:
        print("in the third file", flush=True)
        threading.Event().wait()

Part.write = write_until_the_third_file
merge_from_yaml(sys.argv[1], sys.argv[2], file_bytes={})
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    pivot = toy_tensors(layers=6, hidden=128, vocab=500)
    for name, tensors in {"pivot": pivot, "a": moved(pivot, 1), "b": moved(pivot, 2)}.items():
        save_toy(tmp_path / name, tensors)
    document = {
        "merge_method": "varm",
        "base_model": str(tmp_path / "pivot"),
        "models": [{"model": str(tmp_path / name)} for name in "ab"],
    }
    path = tmp_path / "merge.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.timeout(300)
def test_a_killed_merge_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, config: Path) -> None:
    merge_from_yaml(config, str(tmp_path / "whole"), file_bytes=FILE_BYTES)
    command = [sys.executable, "-c", CODE.format(FILE_BYTES), str(config), str(tmp_path / "cut")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in the third file\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut" / "config.json").exists()
    assert len(list((tmp_path / "cut").glob(".model*.tmp"))) == 1
    for file in (tmp_path / "cut").glob("model-*.safetensors"):
        load_file(file)  # What is visible is whole.
    done = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cut").glob("model-*.safetensors")}

    started = time.time_ns()
    merge_from_yaml(config, str(tmp_path / "cut"), file_bytes=FILE_BYTES)
    names = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert sorted(file.name for file in (tmp_path / "cut").iterdir()) == names
    for name in names:
        if name != "README.md":  # Its title is the folder's name.
            assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    kept = [name for name, changed in done.items() if (tmp_path / "cut" / name).stat().st_mtime_ns == changed < started]
    assert len(kept) == 2
