"""Write a commented recipe for a pivot, sources and a corpus, after looking at them."""

import json
import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import yaml

from fusion_ray.corpus.files import chat_files, read_chats
from fusion_ray.errors import RecipeError
from fusion_ray.recipe import is_reserved, parse_recipe
from fusion_ray.storage.model_files import find_model, text_config

_LOOKED_AT = 1000

_TEMPLATE = """\
# Fuses {source_count} source model(s) into the pivot. Next: `fusion-ray inspect PIVOT CHATS` shows the chats as a model
# reads them, `fusion-ray plan {file}` what a run takes, `fusion-ray run {file}` runs it.
name: {name}
seed: 0

# The model everything is expressed in.
pivot: {{model: {pivot}}}  # {pivot_facts}

# The models whose knowledge is taken; any architecture, size and tokenizer.
sources:
{sources}

# {corpus_facts}
corpus:
  path: {corpus}
  heldout: 0.1      # only the report reads these
  validation: 0.05  # for choosing hyperparameters
  shard_rows: {shard_rows}

# Every model reads the corpus once; the top_k of each answer position is kept.
distributions:
  top_k: 10
  max_length: {max_length}
  engine: {engine}  # transformers runs anywhere; vllm is the production engine
  actors: {{min: 1, max: {actors}}}
  gpus_per_actor: {gpus}

# Sources are aligned to the pivot's tokens by bytes; per chat the better model teaches (MinCE).
fused:
  mode: pairwise  # one target for each source, then merged; multi: one target, taught by the best of all sources
  align: bytes
  choose: {{kind: mince, level: sequence, unit: byte, trust: fitted}}
  pivot_wins: gold  # where the pivot was better: plain fine-tuning; the paper's distil teaches its own distribution

# One target per source. These are the paper's settings for 7B models; smaller models want a larger learning_rate.
targets:
  start: sft  # the control is trained first, and each target goes on from it; pivot: as in the paper
  lambda_: 0.2  # the weight of gold, which the control has learned; 0.5 from the pivot, the paper's is 0.9
  epochs: 3
  learning_rate: 5.0e-6
  max_length: {max_length}
  tokens_per_step: 262144
  dtype: bfloat16
  zero_stage: {zero_stage}
  workers: 1
  gpus_per_worker: {gpus}
  controls: [sft]  # the same training without fusion, to see what fusion gave

merged:
  method: rescaled_sum  # what each source taught beyond the sft control, added up; or varm, as in the paper

# For the report, if you like (docs/report.md): a judge in the manner of MT-Bench, and lm-evaluation-harness.
# judge: {{base_url: http://localhost:8000/v1, model: NAME, questions: question.jsonl}}
# evaluate: {{tasks: [arc_easy]}}
"""


class _Look(NamedTuple):
    """What `init` sees of a model folder."""

    architecture: str
    vocabulary: int
    positions: int
    bytes: int


def write_recipe(pivot: str, sources: list[str], corpus: str, output: Path) -> None:
    """Write `output`; it is validated before it is left there.

    Raises:
        RecipeError: A model or the corpus cannot be used, or the file exists.
    """
    if output.exists():
        raise RecipeError(f"{output} exists. Give another name with --output, or delete it.")
    looks = {model: _look_at(model) for model in [pivot, *sources]}
    gpu = _has_gpu()
    positions = min(look.positions for look in looks.values())
    text = _TEMPLATE.format(
        file=output,
        name=re.sub(r"[^A-Za-z0-9_.-]", "-", output.stem),
        pivot=json.dumps(pivot),
        pivot_facts=_describe(looks[pivot]),
        sources="\n".join(_source_line(name, model, looks[model]) for name, model in _name_sources(sources).items()),
        source_count=len(sources),
        corpus=json.dumps(corpus),
        corpus_facts=_describe_corpus(corpus),
        shard_rows=512,
        max_length=min(2048, positions),
        engine="vllm" if gpu else "transformers",
        actors=8 if gpu else 1,
        gpus=int(gpu),
        zero_stage=2 if gpu else 0,
    )
    parse_recipe(yaml.safe_load(text), where=str(output))
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{output}: the recipe cannot be written ({error}). Give another place.") from error


def _look_at(model: str) -> _Look:
    files = find_model(model)
    folder = Path(files.folder)
    config = text_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return _Look(
        (config.get("architectures") or [config.get("model_type", "unknown")])[0],
        int(config.get("vocab_size") or 0),
        int(config.get("max_position_embeddings") or 2048),
        sum((folder / name).stat().st_size for name in files.hashes if name.endswith(".safetensors")),
    )


def _describe(look: _Look) -> str:
    return f"{look.architecture}, vocabulary {look.vocabulary:,}, {look.bytes / 1e9:.2f} GB of weights"


def _name_sources(sources: list[str]) -> dict[str, str]:
    """A short name for every source, from the last part of its path."""
    named: dict[str, str] = {}
    for source in sources:
        base = re.sub(r"[^A-Za-z0-9_.-]", "-", source.rstrip("/").rsplit("/", 1)[-1].split("@")[0]).lower()
        base = base.lstrip("_.-")[:50] or "source"
        name, number = base, 2
        while name in named or is_reserved(name):
            name, number = f"{base}-{number}", number + 1
        named[name] = source
    return named


def _source_line(name: str, model: str, look: _Look) -> str:
    return f"  - {{name: {name}, model: {json.dumps(model)}}}  # {_describe(look)}"


def _describe_corpus(corpus: str) -> str:
    files = chat_files(corpus)
    chats = list(islice(read_chats(files[0]), _LOOKED_AT))
    usable = [chat for chat in chats if chat.reason is None]
    if not usable:
        reason = chats[0].reason if chats else "the file is empty"
        raise RecipeError(f"corpus '{corpus}': no usable chat among the first {len(chats)} rows ({reason}).")
    domains = sorted({chat.domain or "all" for chat in usable})
    shown = ", ".join(domains[:5]) + (", ..." if len(domains) > 5 else "")
    return f"{len(files)} file(s); of the first {len(chats)} chats {len(usable)} are usable; domains: {shown}"


def _has_gpu() -> bool:
    return any(Path("/proc/driver/nvidia/gpus").glob("*")) or Path("/dev/kfd").exists()
