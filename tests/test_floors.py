"""The contracts of import-linter bite: each finds an import that is planted against it, and names it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Plant(NamedTuple):
    """A forbidden import: the file it is added to, and what the linter must print of it under which contract."""

    contract: str
    file: str
    text: str
    expected: str


FLOORS = "Floors: a package imports only what lies below; a new one must be given its floor here"
FACE = "Nothing inside imports the package's face"
RAY = "Ray is imported where it is used: stages, on_ray, the run, and a target's worker"
COMPUTING = "What computes runs without Ray, however far its imports lead"
LIGHT = "Recipes, plans and the command line start without torch, Transformers, vLLM and DeepSpeed"
DEMO = "Only the command line knows the demo"
PLANTS = (
    Plant(FLOORS, "corpus/split.py", "import fusion_ray.answers.write", "corpus.split -> fusion_ray.answers.write (l."),
    Plant(FLOORS, "storage/peak.py", "from fusion_ray.chat import spans", "storage.peak -> fusion_ray.chat.spans (l."),
    Plant(FLOORS, "novel/__init__.py", '"""A package without a floor."""', "not listed as layers: - fusion_ray.novel"),
    Plant(FACE, "report/page.py", "import fusion_ray", "fusion_ray.report.page -> fusion_ray (l."),
    Plant(RAY, "planning/sizes.py", "def later():\n    import ray", "fusion_ray.planning.sizes -> ray (l."),
    Plant(RAY, "report/judging.py", "import ray", "fusion_ray.report.judging -> ray (l."),
    Plant(COMPUTING, "fused/align/view.py", "import fusion_ray.on_ray.streams", "view -> fusion_ray.on_ray.streams"),
    Plant(COMPUTING, "models/head.py", "def later():\n    import ray", "fusion_ray.models.head -> ray (l."),
    Plant(LIGHT, "recipe/corpus.py", "import torch", "fusion_ray.recipe.corpus -> torch (l."),
    Plant(LIGHT, "planning/costs.py", "from vllm import LLM", "fusion_ray.planning.costs -> vllm (l."),
    Plant(DEMO, "report/figures.py", "from fusion_ray.demo import prepare", "report.figures -> fusion_ray.demo (l."),
)  # fmt: skip


def copy_package(folder: Path) -> Path:
    """The package and the contracts, in a folder of their own."""
    shutil.copytree(ROOT / "fusion_ray", folder / "fusion_ray", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder / "fusion_ray"


def lint(folder: Path) -> tuple[int, dict[str, str]]:
    """The exit code, and what the linter says of each contract that is broken."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    command = [str(Path(sys.executable).with_name("lint-imports")), "--config", "pyproject.toml", "--no-cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert "Contracts: " in done.stdout, done.stdout + done.stderr
    _, _, broken = done.stdout.partition("Broken contracts")
    parts = re.split(r"\n([^\n]+)\n-+\n", broken)
    said = zip(parts[1::2], parts[2::2], strict=True)
    return done.returncode, {title.strip(): " ".join(text.split()) for title, text in said}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.file}: {plant.text.splitlines()[-1].strip()}")
def test_an_import_against_a_contract_is_found_and_named(plant: Plant, tmp_path: Path) -> None:
    path = copy_package(tmp_path) / plant.file
    path.parent.mkdir(exist_ok=True)
    before = path.read_text() if path.exists() else ""
    path.write_text(f"{before}\n{plant.text}\n")
    code, broken = lint(tmp_path)
    assert code == 1
    assert plant.expected in broken[plant.contract]


def test_every_contract_has_an_import_planted_against_it_and_holds_without(tmp_path: Path) -> None:
    names = re.findall(r'\[\[tool\.importlinter\.contracts\]\]\nname = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert {plant.contract for plant in PLANTS} == set(names)
    copy_package(tmp_path)
    assert lint(tmp_path) == (0, {})
