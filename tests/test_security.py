"""Rules that hold for every file of the package: how YAML, pickles, shells and environments are handled."""

import ast
from pathlib import Path

import pytest

from fusion_ray.errors import RecipeError
from fusion_ray.recipe import load_recipe, parse_recipe
from fusion_ray.storage.filesystem import join

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(ROOT / "fusion_ray").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])
FORBIDDEN = {
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "pickle.load", "pickle.loads", "torch.load",
    "os.system", "eval", "exec", "np.load", "numpy.load", "joblib.load", "cloudpickle.loads",
}  # fmt: skip


def calls(text: str) -> list[tuple[str, ast.Call]]:
    """Every call of a file with the name that is called."""
    return [(ast.unparse(node.func), node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]


def unsafe_calls(text: str) -> list[str]:
    """Line and name of every call that runs what it reads, or starts a shell."""
    safe_in_c = "CSafeLoader" in text  # The safe loader in C, which only `yaml.load` reaches.
    unsafe = FORBIDDEN - {"yaml.load"} if safe_in_c else FORBIDDEN
    return [
        f"line {call.lineno}: {name}"
        for name, call in calls(text)
        if name in unsafe or any(keyword.arg == "shell" for keyword in call.keywords)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_read_that_could_run_code_when_it_is_read(path: Path) -> None:
    assert unsafe_calls(path.read_text()) == []


def test_every_call_of_a_file_is_looked_at_and_its_line_told() -> None:
    text = "import subprocess, torch\nsubprocess.run('a', shell=True)\nsubprocess.run(['b'])\ntorch.load('c')\n"
    assert unsafe_calls(text) == ["line 2: subprocess.run", "line 4: torch.load"]
    assert len(SOURCES) > 150, "the files of the package and of jobs"


def test_a_yaml_file_that_would_make_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'owned'}]\n")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "/absolute", ".hidden", "", "x" * 65])
def test_a_name_that_would_leave_the_run_folder_is_refused(name: str) -> None:
    data = {"name": "toy", "pivot": {"model": "m"}, "sources": [{"name": "a", "model": "m"}], "corpus": {"path": "c"}}
    assert parse_recipe(data).name == "toy"
    with pytest.raises(RecipeError):
        parse_recipe(data | {"name": name})
    with pytest.raises(RecipeError):
        parse_recipe(data | {"sources": [{"name": name, "model": "m"}]})


@pytest.mark.parametrize("name", ["../up", "a/../../b", "/etc/passwd"])
def test_a_path_that_would_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="would leave this folder"):
        join("runs/toy", name)
