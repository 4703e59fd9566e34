"""Make align_vectors.json with the literal oracles of exact and published alignment.

    python tests/golden/make_align_vectors.py

The tokenizers are spelt out in the file, so that a new release of a tokenizer library cannot change the numbers.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from toys.align_cases import CASES, case_parts

from fusion_ray.fused.align.naive import project_naively
from fusion_ray.fused.align_published.naive import map_exactly, map_nearest, match_naively, move_naively, warp_naively


def main() -> None:
    """Write the vectors of every case."""
    vectors = {
        name: {"bytes": _exact(name), "em": _moved(name, "em"), "mined": _moved(name, "mined")} for name in CASES
    }
    Path(__file__).with_name("align_vectors.json").write_text(json.dumps(vectors, indent=1, ensure_ascii=False) + "\n")


def _exact(name: str) -> list[dict[str, float] | None]:
    parts = case_parts(name)
    positions = project_naively(parts.pivot, parts.source, parts.topk, parts.pair, "unigram")
    return [position and _named(parts.pivot_words, position.probabilities) for position in positions]


def _moved(name: str, kind: str) -> list[dict[str, float]]:
    parts = case_parts(name)
    ours = [parts.pivot_words[token] for token in parts.pivot.ids_T[:-1]]
    theirs = [parts.source_words[token] for token in parts.source.ids_T[:-1]]
    matches = match_naively(ours, theirs, warp_naively(ours, theirs))

    def target(token: int) -> int | None:
        if token == len(parts.source_words) - 1:
            return len(parts.pivot_words) - 1
        exact = map_exactly(parts.source_words[token], parts.pivot_words)
        return map_nearest(parts.source_words[token], parts.pivot_words) if kind == "mined" and exact is None else exact

    rows = [0, *(None if j is None else j + 1 for j in matches)]
    vectors = []
    for row, real in zip(rows, parts.pivot.ids_T.tolist(), strict=True):
        entries = None
        if row is not None:
            pairs = zip(parts.topk.ids_TK[row].tolist(), np.exp(parts.topk.logprobs_TK[row]).tolist(), strict=True)
            entries = {token: mass for token, mass in pairs if token >= 0}
        vectors.append(_named(parts.pivot_words, move_naively(entries, target, real, 4).probabilities))
    return vectors


def _named(words: tuple[str, ...], probabilities: dict[int, float]) -> dict[str, float]:
    ordered = sorted(probabilities.items(), key=lambda entry: (-entry[1], entry[0]))
    return {words[token]: round(float(mass), 9) for token, mass in ordered}


if __name__ == "__main__":
    main()
