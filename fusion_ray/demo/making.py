"""Make a demo folder: chats, models, recipe. A model is trained anew only where something it is made from changed.

recipe.yaml            the recipe, with this folder's paths
chats.jsonl            the fusion corpus: no model below has seen its chats
training/chats.jsonl   what the models were trained on
models/NAME/           Hugging Face folders; demo.json in each says what it was made from
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata, resources
from pathlib import Path
from typing import Any, TextIO

from fusion_ray.demo.chats import Chat, all_chats
from fusion_ray.demo.plans import PLANS, DemoPlan, ModelPlan
from fusion_ray.errors import EngineError, RecipeError
from fusion_ray.progress import Progress, Tell

_MARK = "demo.json"


def make(folder: Path, seed: int, tell: Tell, size: str) -> Path:
    """Make what is missing or out of date; see `fusion_ray.demo.prepare`."""
    if size not in PLANS:
        raise RecipeError(f"demo: no size '{size}'; there are {', '.join(PLANS)}.")
    make_materials(folder, PLANS[size], seed, tell)
    recipe = folder / "recipe.yaml"
    _write(recipe, recipe_text(size, folder, seed))
    return recipe


def make_materials(folder: Path, plan: DemoPlan, seed: int, tell: Tell, beside: Iterable[Path] = ()) -> None:
    """Make the chats and models of a plan, without a recipe.

    Args:
        beside: Demo folders whose models are linked, not trained again, where they are made from exactly the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _make_chats(folder, plan, seed, tell)
    _make_models(folder, plan, seed, tell, beside)


def recipe_text(size: str, folder: Path, seed: int) -> str:
    """The packaged recipe of a size with the paths of a folder and a seed in it."""
    text = resources.files("fusion_ray.demo").joinpath("recipes", f"{size}.yaml").read_text(encoding="utf-8")
    return text.replace(f" {size}/", f" {folder.as_posix()}/").replace("\nseed: 0\n", f"\nseed: {seed}\n")


# --- chats -----------------------------------------------------------------------------------------------------


def split_chats(chats: list[Chat], plan: DemoPlan, seed: int) -> tuple[list[Chat], list[Chat]]:
    """Chats for the models and chats for fusion, disjoint, in an order that depends on seed and id alone."""
    training, fusion = [], []
    for domain in dict.fromkeys(chat.domain for chat in chats):
        ours = [chat for chat in chats if chat.domain == domain]
        ours.sort(key=lambda chat: hashlib.sha256(f"demo:{seed}:{chat.id}".encode()).digest())
        fusion += ours[: plan.fusion_chats]
        training += ours[plan.fusion_chats :][: plan.training_chats]
    return training, fusion


def _make_chats(folder: Path, plan: DemoPlan, seed: int, tell: Tell) -> None:
    mark = folder / "training" / _MARK
    made_from = _digest(
        {"seed": seed, "texts": asdict(plan.texts), "counts": [plan.fusion_chats, plan.training_chats]}
        | {"python": sys.version, "packages": _versions((*plan.texts.packages, "chatterbot-corpus"))}
        | {"code": _code_digest("chats.py", "making.py")}
    )
    if _is_made(mark, made_from, folder / "chats.jsonl", folder / "training" / "chats.jsonl"):
        tell(Progress("demo chats", 1, 1, "already there"))
        return
    mark.parent.mkdir(exist_ok=True)
    mark.unlink(missing_ok=True)
    tell(Progress("demo chats", 0, 1, "reading Python's library, documentation and dialogues"))
    training, fusion = split_chats(all_chats(plan.texts), plan, seed)
    _write(mark.parent / "chats.jsonl", _lines(training))
    _write(folder / "chats.jsonl", _lines(fusion))
    _write(mark, json.dumps({"made_from": made_from}))
    tell(Progress("demo chats", 1, 1, f"{len(training)} to train models on, {len(fusion)} to fuse on"))


def _lines(chats: list[Chat]) -> str:
    rows = ({"id": chat.id, "domain": chat.domain, "messages": chat.messages()} for chat in chats)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# --- models ----------------------------------------------------------------------------------------------------


def _make_models(folder: Path, plan: DemoPlan, seed: int, tell: Tell, beside: Iterable[Path]) -> None:
    chats = hashlib.sha256((folder / "training" / "chats.jsonl").read_bytes()).hexdigest()
    code = _code_digest("training.py", "vocabularies.py")
    versions = _versions(("torch", "transformers", "tokenizers"))
    waiting = []
    for place, model in enumerate(plan.models):
        seeded = replace(model, seed=1000 * seed + place)
        made_from = _digest({"plan": asdict(seeded), "chats": chats, "code": code, "versions": versions})
        if _is_there(folder, model.name, made_from):
            tell(Progress(f"demo model {model.name}", 1, 1, "already there"))
            continue
        found = next((other for other in beside if _is_there(other, model.name, made_from)), None)
        if found is None:
            waiting.append((seeded, made_from))
        else:
            _link_model(found, folder, model.name)
            tell(Progress(f"demo model {model.name}", 1, 1, f"linked from {found}"))
    if not waiting:
        return
    crew = _Crew(folder, tell, plan.apart)
    with ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) if plan.apart else 1) as threads:
        try:
            for finished in [threads.submit(crew.train, *job) for job in waiting]:
                finished.result()
        finally:
            crew.stop()


def _is_there(folder: Path, name: str, made_from: str) -> bool:
    target = folder / "models" / name
    return _is_made(target / _MARK, made_from, target / "model.safetensors")


def _link_model(found: Path, folder: Path, name: str) -> None:
    target = folder / "models" / name
    growing = target.with_name(f".{name}")
    shutil.rmtree(growing, ignore_errors=True)
    shutil.copytree(found / "models" / name, growing, copy_function=os.link)
    shutil.rmtree(target, ignore_errors=True)
    growing.replace(target)


class _Crew:
    """The trainings of one demo folder, the processes they run in, and the lock under which they report."""

    def __init__(self, folder: Path, tell: Tell, apart: bool) -> None:
        self.folder, self.tell, self.apart = folder, tell, apart
        self.lock = threading.Lock()
        self.processes: list[subprocess.Popen[str]] = []
        self.stopped = False

    def train(self, plan: ModelPlan, made_from: str) -> None:
        """Train one model, and put its folder in place when it is whole."""
        target = self.folder / "models" / plan.name
        growing = target.with_name(f".{plan.name}")
        shutil.rmtree(growing, ignore_errors=True)
        growing.mkdir(parents=True)
        job = self.folder / "training" / f"{plan.name}.json"
        described = {"plan": asdict(plan), "chats": str(job.with_name("chats.jsonl")), "folder": str(growing)}
        _write(job, json.dumps(described))
        if self.apart:
            self._train_apart(plan, job)
        else:
            self._train_here(plan, job)
        _write(growing / _MARK, json.dumps({"made_from": made_from, "plan": asdict(plan)}, indent=1))
        shutil.rmtree(target, ignore_errors=True)
        growing.replace(target)

    def _report(self, plan: ModelPlan, done: int, total: int, loss: float) -> None:
        with self.lock:
            self.tell(Progress(f"demo model {plan.name}", done, total, f"loss {loss:.2f} nats per token"))

    def _train_here(self, plan: ModelPlan, job: Path) -> None:
        from fusion_ray.demo.training import run_job

        run_job(job, partial(self._report, plan))

    def _train_apart(self, plan: ModelPlan, job: Path) -> None:
        log = job.with_suffix(".log")
        with log.open("w", encoding="utf-8") as errors:
            process = self._start(plan, job, errors)
            with process:
                for line in process.stdout or ():
                    self._report(plan, **json.loads(line))
        if process.returncode:
            tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-12:])
            raise EngineError(f"Training the demo's model '{plan.name}' failed; {log} ends with:\n{tail}")

    def _start(self, plan: ModelPlan, job: Path, errors: TextIO) -> subprocess.Popen[str]:
        one_thread = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "fusion_ray.demo.training", str(job)]
        with self.lock:
            if self.stopped:
                raise EngineError(f"The demo's model '{plan.name}' was not trained: another one failed.")
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, env=os.environ | one_thread, text=True
            )
            self.processes.append(process)
        return process

    def stop(self) -> None:
        """End what still runs: after a failure or an interrupt nobody waits for it."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                if process.poll() is None:
                    process.terminate()


# --- what something was made from ------------------------------------------------------------------------------


def _is_made(mark: Path, made_from: str, *files: Path) -> bool:
    if not mark.is_file() or not all(file.is_file() for file in files):
        return False
    return bool(json.loads(mark.read_text(encoding="utf-8")).get("made_from") == made_from)


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _code_digest(*names: str) -> str:
    ours = resources.files("fusion_ray.demo")
    return hashlib.sha256(b"".join(ours.joinpath(name).read_bytes() for name in names)).hexdigest()


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    growing = path.with_name(f".{path.name}.tmp")
    growing.write_text(text, encoding="utf-8")
    growing.replace(path)
