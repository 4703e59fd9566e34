"""Guards of taste: sizes, docstrings, light imports, recipes and documents that are true."""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from fusion_ray.recipe import load_recipe, parse_recipe

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "fusion_ray").rglob("*.py"))
# What setup, runs and tools leave behind; no part of the project. `.gitignore` names them.
LEFT_BEHIND = {line.strip().strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.strip()}
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HEAVY = {"torch", "ray", "vllm", "transformers", "deepspeed"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_and_its_functions_are_short_and_say_what_they_are_for(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(tree), "a module begins with what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 61, f"{node.name} is longer than 60 lines"
    for node in tree.body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        assert not public or ast.get_docstring(node), f"{node.name} has no docstring"  # type: ignore[attr-defined]


def test_unit_tests_start_no_server_no_ray_no_training_and_no_deepspeed() -> None:
    heavy = {"toys.loopback", "toys.store", "toys.vllm_server", "toys.run", "toys.dying", "ray", "deepspeed", "vllm"}
    for path in [*(ROOT / "tests").glob("*/test_*.py"), *(ROOT / "tests").glob("test_*.py")]:
        if path.parent.name in ("property", "golden", "integration", "fault", "cluster"):
            continue  # tests/cluster reads files of Ray's own, and starts nothing.
        found = {node.name if isinstance(node, ast.alias) else node.module for node in imports_of(path)}
        where = f"{path.relative_to(ROOT)} belongs into tests/integration"
        assert not heavy & found, where
        names = {alias.name for node in imports_of(path) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert not {"Trainer", "ThreadingHTTPServer"} & names, (
            f"{path.relative_to(ROOT)} belongs into tests/integration"
        )


def imports_of(path: Path) -> list[ast.alias | ast.ImportFrom]:
    """Every import of a file, also those inside functions."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return [*plain, *(node for node in nodes if isinstance(node, ast.ImportFrom))]


@pytest.mark.parametrize("command", [["--help"], ["plan", "jobs/recipes/demo.yaml"]])
def test_help_and_plan_import_nothing_heavy(command: list[str]) -> None:
    script = (
        "import sys; from fusion_ray.cli.app import app\n"
        f"try: app({command!r})\nexcept SystemExit: pass\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_recipes_plans_and_the_command_line_are_imported_without_anything_heavy() -> None:
    modules = (
        "fusion_ray", "fusion_ray.recipe", "fusion_ray.planning.forecast", "fusion_ray.pipeline.graph",
        "fusion_ray.pipeline.status", "fusion_ray.api", "fusion_ray.cli.app",
    )  # fmt: skip
    script = f"import sys\nimport {', '.join(modules)}\nprint(sorted({HEAVY | {'numba'}!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_opens(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_every_recipe_in_the_documents_opens() -> None:
    found = 0
    for document in DOCS:
        for block in re.findall(r"```yaml\n(.*?)```", document.read_text(), re.DOTALL):
            data = yaml.safe_load(block)
            if isinstance(data, dict) and "pivot" in data and "sources" in data:
                parse_recipe(data, where=document.name)
                found += 1
    assert found, "the README shows a recipe"


def test_the_readmes_tree_equals_the_disk() -> None:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", text, re.DOTALL)
    assert block, "README.md holds the tree between <!-- tree --> and ```"
    named = set(re.findall(r"^\s*([\w./-]+)", block.group(1), re.MULTILINE))
    kept = [path for path in ROOT.iterdir() if not any(fnmatch(path.name, p) for p in [".git", *LEFT_BEHIND])]
    top = {path.name + "/" * path.is_dir() for path in kept}
    packages = {
        f"{path.parent.relative_to(ROOT / 'fusion_ray')}/" for path in SOURCES if path.parent != ROOT / "fusion_ray"
    }
    packages = {name for name in packages if name.count("/") == 1} | {"api.py"}
    missing = {name for name in top | packages if name not in named and not name.startswith((".git", "LICENSE"))}
    assert not missing, f"on disk and not in the README: {sorted(missing)}"
    gone = {name for name in named if not (ROOT / name).exists() and not (ROOT / "fusion_ray" / name).exists()}
    assert not gone, f"in the README and not on disk: {sorted(gone)}"


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCS:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_files_that_the_documents_name_are_there() -> None:
    """Paths from the root, and in backticks also from the package or the tests; log.md tells of what was."""
    files = r"(?:fusion_ray|tests|bench|cluster|docs|jobs(?!/recipes/mine))/[\w/.-]+\.(?:py|yaml|jsonl?|sh|md)\b"
    rooted = rf"(?<![\w/.-])({files})"
    for document in [*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "cluster" / "README.md"]:
        text = document.read_text()
        paths = [*re.findall(rooted, text), *re.findall(r"`([\w/]+/[\w.]+\.py)`", text)]
        for path in paths if document.name != "log.md" else []:
            places = (ROOT, ROOT / "fusion_ray", ROOT / "tests")
            found = any((place / path).exists() for place in places)
            assert found or "WORD" in path, f"{document.name} names {path}"


def test_the_page_of_the_python_api_is_what_its_docstrings_say() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", "docs/api.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nRun `make docs`."
