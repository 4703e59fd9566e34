"""Do the tests bite: change the package a little, one place at a time, and see the tests of that package fail.

    python tests/mutants.py --seed 0        (`make mutants`)

The listed mutants are mistakes that would mislead users; each must be found. Others are drawn by seed, some from every
package, and at most one in twenty of them may live. Each is applied to a copy of the repository, so the working tree
stays as it is.
"""

import argparse
import ast
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from toys.listed_mutants import EQUIVALENT, LISTED, Change
from toys.mutations import Mutation, compiles, list_mutations

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fusion_ray"
COPIED = ("fusion_ray", "tests", "jobs", "bench", "docs", "cluster", "pyproject.toml", "README.md", ".gitignore")
LIMIT_S = 600
MAY_LIVE = 0.05
# Tests beside those of its own package that a file has; the longest path that fits counts.
BESIDE = {
    "": ("test_errors.py", "cli", "jobs"),
    "api.py": ("cli", "integration/test_pipeline.py"),
    "answers/stage.py": ("integration/test_answers.py",),
    "chat": ("property/test_chat_boundaries.py",),
    "corpus/stage.py": ("integration/test_bad_chats.py", "integration/test_report.py"),
    "cli/chat.py": ("integration/test_chat_command.py",),
    "demo": ("integration/test_demo.py",),
    "distributions": ("storage/test_attempts.py",),
    "distributions/stage.py": ("integration/test_workers.py", "integration/test_bad_chats.py"),
    "fused": ("property/test_alignment_laws.py", "property/test_alignment_dtw.py", "golden/test_align_vectors.py"),
    "fused/stage.py": ("integration/test_answers.py", "integration/test_bad_chats.py"),
    "merged": ("property/test_merge_laws.py",),
    "merged/stage.py": ("integration/test_merge_stage.py",),
    "models/openai.py": ("integration/test_openai.py",),
    "models/server.py": ("integration/test_openai.py", "integration/test_judge_client.py"),
    "models/vllm.py": ("integration/test_scorer_vllm.py",),
    "on_ray/shard_loop.py": (),
    "on_ray/metrics.py": (),
    "on_ray": ("integration/test_metrics.py", "integration/test_workers.py", "integration/test_cluster_room.py"),
    "pipeline/run.py": ("integration/test_targets.py", "integration/test_report.py"),
    "recipe": ("property/test_recipes.py", "pipeline"),
    "report/harness.py": ("integration/test_harness.py",),
    "report/harness_tasks.py": ("integration/test_harness.py",),
    "report/judge.py": ("integration/test_report_judge_and_benchmarks.py",),
    "report/judge_client.py": ("integration/test_judge_client.py",),
    "report/push.py": ("integration/test_push.py",),
    "report/run_benchmarks.py": ("integration/test_report_judge_and_benchmarks.py",),
    "report/stage.py": ("integration/test_report.py",),
    "storage": ("property/test_topk_codec.py",),
    "targets/adapter.py": ("integration/test_adapter.py",),
    "targets/best_weights.py": ("integration/test_best_weights.py",),
    "targets/deepspeed.py": ("integration/test_trainer.py",),
    "targets/export.py": ("integration/test_trainer.py",),
    "targets/preemption.py": ("integration/test_targets.py", "fault/test_targets_resume.py"),
    "targets/stage.py": ("integration/test_targets.py",),
    "targets/trackers.py": ("integration/test_trackers.py",),
    "targets/trainer.py": ("integration/test_trainer.py", "integration/test_best_weights.py"),
    "targets/training_reports.py": ("integration/test_targets.py",),
    "targets/worker.py": ("integration/test_targets.py",),
}
# Tests of tests/integration that start neither Ray nor vLLM nor DeepSpeed.
LIGHT = ("test_openai", "test_judge_client", "test_push", "test_harness", "test_demo", "test_chat_command")


class Mutant(NamedTuple):
    """A file of the package, a change in it, and the tests that should see it."""

    file: str
    mutation: Mutation
    tests: tuple[str, ...]
    listed: bool

    def __str__(self) -> str:
        change = f"{self.mutation.before[:60]} -> {self.mutation.after[:60]}"
        return f"{'listed' if self.listed else 'drawn '} {self.file}:{self.mutation.line}  {change}"


class Outcome(NamedTuple):
    """What became of a mutant: `killed`, `lived`, or `equivalent` with the reason why nobody can see it."""

    mutant: Mutant
    state: str
    seconds: float


def checks_of(file: str) -> tuple[str, ...]:
    """The tests of a file's package, those beside them, and the file's own doctests; quick ones first."""
    own = f"tests/{file.split('/', maxsplit=1)[0]}"
    best = max((place for place in BESIDE if file == place or file.startswith(f"{place}/") or not place), key=len)
    beside = tuple(f"tests/{path}" for path in BESIDE[best]) if best or "/" not in file else ()
    # The examples of api.py need a finished run; integration/test_pipeline.py runs them beside one.
    doctests = () if file == "api.py" else (f"fusion_ray/{file}",)
    return (*doctests, *([own] if (ROOT / own).is_dir() else []), *beside)


def listed_mutants(packages: Sequence[str]) -> list[Mutant]:
    """Those written down in toys/listed_mutants.py, of these packages."""
    found = []
    for listed in LISTED:
        text = (PACKAGE / listed.file).read_text()
        assert text.count(listed.old) == 1, (
            f"{listed.file}: {text.count(listed.old)} times {listed.old!r}; adapt LISTED"
        )
        line = text[: text.index(listed.old)].count("\n") + 1
        before, after = (" ".join(part.split()) for part in (listed.old, listed.new))
        mutation = Mutation(line, 0, before, after, text.replace(listed.old, listed.new))
        tests = tuple(f"tests/{path}" for path in listed.tests)
        found.append(Mutant(listed.file, mutation, tests, True))
    return [mutant for mutant in found if package_of(mutant.file) in packages]


def is_quick(file: str) -> bool:
    """Whether a file's tests start neither Ray nor vLLM nor DeepSpeed."""
    heavy = [path for path in checks_of(file) if path.startswith(("tests/integration", "tests/fault"))]
    return all(Path(path).stem in LIGHT for path in heavy)


def drawn_mutants(packages: Sequence[str], seed: int, each: int, *, quick: bool = False) -> list[Mutant]:
    """So many of every package, drawn from all the changes that the operators make in it.

    Args:
        packages: Of these.
        seed: Another one draws others.
        each: How many of each.
        quick: Leave out files whose tests start Ray, vLLM or DeepSpeed.
    """
    found = []
    for package in packages:
        files = sorted(path for path in PACKAGE.rglob("*.py") if package_of(str(path.relative_to(PACKAGE))) == package)
        files = [path for path in files if not quick or is_quick(str(path.relative_to(PACKAGE)))]
        changes = [(path, change) for path in files for change in list_mutations(path.read_text())]
        random.Random(f"{seed} {package}").shuffle(changes)
        usable = ((path, change) for path, change in changes if compiles(change))
        for (path, change), _ in zip(usable, range(each), strict=False):
            file = str(path.relative_to(PACKAGE))
            found.append(Mutant(file, change, checks_of(file), False))
    return found


def change_of(file: str, mutation: Mutation) -> Change:
    """A change as it stands in EQUIVALENT: found again wherever its line moves to."""
    line = (PACKAGE / file).read_text().splitlines()[mutation.line - 1]
    return Change(file, line[: mutation.column].lstrip(), mutation.before, mutation.after)


def package_of(file: str) -> str:
    """The folder that a file lies in; `root` for api.py, errors.py and the others beside the packages."""
    return file.split("/", maxsplit=1)[0] if "/" in file else "root"


def all_packages() -> list[str]:
    """Every package, by name."""
    return sorted({package_of(str(path.relative_to(PACKAGE))) for path in PACKAGE.rglob("*.py")})


class Copy:
    """The repository in a folder of its own, where one mutant after another is tried."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:
            place = ROOT / name
            if place.is_dir():
                shutil.copytree(place, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
            else:
                shutil.copy(place, folder / name)

    def fails(self, tests: Sequence[str], caches: str = "warm") -> bool:
        """Run some tests; whether one failed, or they took too long."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "--assert=plain",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow",
        ]
        command += ["--hypothesis-seed=0", "-o", f"timeout={LIMIT_S // 2}", *tests]
        places = {"PYTHONPATH": str(self.folder), "NUMBA_CACHE_DIR": str(self.folder / f"numba_{caches}")}
        environment = {**os.environ, **places, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            self.output = process.communicate(timeout=LIMIT_S)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            self.output = process.communicate()[0].decode(errors="replace")
            return True
        assert process.returncode in (0, 1, 2, 5), self.output[-2000:]
        return process.returncode in (1, 2)

    def kills(self, mutant: Mutant) -> bool:
        """Whether the tests see a mutant; the copy is as before afterwards."""
        path = self.folder / "fusion_ray" / mutant.file
        before = path.read_text()
        # A compiled loop holds what it calls and the numbers it reads, so no former one may be used again.
        loops = mutant.file.startswith(("fused/", "merged/methods/"))
        try:
            self._write(path, mutant.mutation.text)
            return self.fails(mutant.tests, "cold" if loops else "warm")
        finally:
            self._write(path, before)
            shutil.rmtree(self.folder / "numba_cold", ignore_errors=True)

    @staticmethod
    def _write(path: Path, text: str) -> None:
        """Write a module; of equal size and second, Python would take its former bytecode for fresh."""
        path.write_text(text)
        for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            stale.unlink()


def try_all(mutants: Sequence[Mutant], folder: Path, processes: int) -> list[Outcome]:
    """Try every mutant in one of a few copies, after the tests have passed without any."""
    copies: queue.Queue[Copy] = queue.Queue()
    for number in range(processes):
        copies.put(Copy(folder / str(number)))

    def borrow(work: "Mutant | tuple[str, ...]") -> Outcome | None:
        copy, started = copies.get(), time.monotonic()
        try:
            if not isinstance(work, Mutant):
                assert not copy.fails(work), f"{work} fail without any mutant:\n{copy.output[-1500:]}"
                return None
            why = EQUIVALENT.get(change_of(work.file, work.mutation))
            state = f"equivalent: {why}" if why else "killed" if copy.kills(work) else "lived"
            outcome = Outcome(work, state, time.monotonic() - started)
            print(f"{outcome.state:7} {outcome.seconds:5.0f} s  {work}", flush=True)
            return outcome
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(processes) as pool:
        paths = sorted({path for mutant in mutants for path in mutant.tests})
        list(pool.map(borrow, [tuple(paths[n::processes]) for n in range(processes)]))
        print("The tests pass without any mutant.", flush=True)
        return [outcome for outcome in pool.map(borrow, mutants) if outcome]


def summarise(outcomes: Sequence[Outcome]) -> int:
    """Print a table by package and those that lived; the exit code."""
    print(f"\n{'package':15}{'listed':>8}{'killed':>8}{'drawn':>8}{'killed':>8}")
    for package in sorted({package_of(outcome.mutant.file) for outcome in outcomes}):
        cells = []
        for listed in (True, False):
            own = [o for o in outcomes if package_of(o.mutant.file) == package and o.mutant.listed is listed]
            cells += [len(own), sum(outcome.state == "killed" for outcome in own)]
        print(f"{package:15}" + "".join(f"{cell:8}" for cell in cells))
    for outcome in outcomes:
        if outcome.state.startswith("equivalent"):
            print(f"{outcome.state}: {outcome.mutant}")
    lived = [outcome for outcome in outcomes if outcome.state == "lived"]
    drawn = [o for o in outcomes if not o.mutant.listed and not o.state.startswith("equivalent")]
    lived_drawn = [outcome for outcome in lived if not outcome.mutant.listed]
    for outcome in lived:
        print(f"lived: {outcome.mutant}")
    print(f"{len(lived_drawn)} of {len(drawn)} drawn ones lived, and {len(lived) - len(lived_drawn)} listed ones.")
    return int(len(lived) > len(lived_drawn) or len(lived_drawn) > MAY_LIVE * len(drawn))


def main() -> int:
    """Read the options, try the mutants, print what became of them."""
    parser = argparse.ArgumentParser(description=ast.get_docstring(ast.parse(Path(__file__).read_text())))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=3, help="drawn from every package")
    parser.add_argument("--packages", nargs="+", default=all_packages(), choices=all_packages(), metavar="PACKAGE")
    parser.add_argument("--only", choices=("listed", "drawn"))
    parser.add_argument("--quick", action="store_true", help="none whose tests start Ray, vLLM or DeepSpeed")
    parser.add_argument("--processes", type=int, default=2, help="tried at a time")
    parser.add_argument("--show", action="store_true", help="print the mutants and try none")
    options = parser.parse_args()
    mutants = [] if options.only == "drawn" else listed_mutants(options.packages)
    mutants += (
        []
        if options.only == "listed"
        else drawn_mutants(options.packages, options.seed, options.each, quick=options.quick)
    )
    mutants = [mutant for mutant in mutants if not options.quick or is_quick(mutant.file)]
    if options.show:
        print("\n".join(map(str, mutants)))
        return 0
    with tempfile.TemporaryDirectory(prefix="fusion_ray_mutants_") as folder:
        return summarise(try_all(mutants, Path(folder), options.processes))


if __name__ == "__main__":
    sys.exit(main())
