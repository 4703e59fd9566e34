"""Score requests with vLLM in a process of its own: it changes torch for the whole process.

    python tests/vllm_session.py REQUEST.npz RESULT.npz FOLDER...

The request holds `row0`, `at0`, `row1`, ...: token ids and positions. The result holds, of model m and row i,
`ids_m_i`, `logprobs_m_i` and `real_m_i`, what was drawn from the first model, `drawn_ids_i` and `drawn_logprobs_i`,
and the errors that a too long sequence and a dead engine gave; with several models also what the first one writes
after the first rows, and its bits per byte in lm-evaluation-harness.
"""

import sys
from pathlib import Path

import numpy as np

from fusion_ray.errors import FusionRayError
from fusion_ray.models.opening import make_scorer
from fusion_ray.models.scorer import DrawSettings
from fusion_ray.models.vllm import VllmGenerator
from fusion_ray.recipe import Evaluate, VllmEngine
from fusion_ray.report.harness import run_harness


def main(request_path: str, result_path: str, folders: list[str]) -> None:
    """Score the request with each model in turn."""
    request = np.load(request_path)
    rows = [request[f"row{i}"] for i in range(len(request.files) // 2)]
    positions = [request[f"at{i}"] for i in range(len(rows))]
    result: dict[str, np.ndarray] = {}
    for m, folder in enumerate(folders):
        scorer = make_scorer(VllmEngine(dtype="float32"), folder, 8, max_length=256, threads=1)
        for i, scored in enumerate(scorer.score(rows, positions)):
            result |= {f"ids_{m}_{i}": scored.ids_TK, f"logprobs_{m}_{i}": scored.logprobs_TK}
            result[f"real_{m}_{i}"] = scored.real_logprobs_T
        if m == 0:
            again = scorer.score(rows, positions)
            result["repeats"] = np.array(
                all(np.array_equal(one.logprobs_TK, result[f"logprobs_0_{i}"]) for i, one in enumerate(again))
            )
            result["too_long"] = np.array(error_of(scorer, np.zeros(257, dtype=np.int32)))
        engine = scorer._engine
        scorer.close()
        if m == len(folders) - 1:
            scorer._engine = engine
            result["dead"] = np.array(error_of(scorer, np.zeros(5, dtype=np.int32)))
    drawing = make_scorer(
        VllmEngine(dtype="float32"), folders[0], 4, sampling=DrawSettings(8, seed=3), max_length=256, threads=1
    )
    for i, scored in enumerate(drawing.score(rows, positions)):
        result |= {f"drawn_ids_{i}": scored.ids_TK, f"drawn_logprobs_{i}": scored.logprobs_TK}
    drawing.close()
    if len(folders) > 1:
        result |= write(rows[:4], folders[0])
    np.savez(result_path, **result)


def write(prompts: list[np.ndarray], folder: str) -> dict[str, np.ndarray]:
    """What the first model writes after some rows, and what the harness measures of it."""
    generator = VllmGenerator(folder, 256, VllmEngine(dtype="float32"), threads=1)
    written = generator.generate(prompts, max_tokens=12, end_ids=[2])
    asked = {"max_tokens": 12, "end_ids": range(2, 40), "temperature": 1.0}
    drawn = [generator.sample(prompts, seeds=seeds, **asked) for seeds in ([1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8])]
    one = generator.sample(prompts[2:3], seeds=[3], **asked)
    same = drawn[0] == drawn[1] and one == drawn[0][2:3] and drawn[0] != drawn[2]
    never = generator.sample(prompts, max_tokens=3, end_ids=[], temperature=1.0, seeds=[1, 2, 3, 4])
    generator.close()
    path = Path(folder) / "gold.jsonl"
    path.write_text('{"question": "One and one?", "answer": "Two, I think."}\n{"question": "Why?", "answer": "So."}\n')
    task = {"kind": "gold_answer", "name": "gold", "path": str(path)}
    found = run_harness(folder, VllmEngine(dtype="float32"), Evaluate.model_validate({"tasks": [task]}), threads=1)
    ended, of_never = ([written.ended for written in made] for made in (drawn[0], never))
    sampled = {
        "same": np.array(same),
        "ended": np.array(ended),
        "never": np.logical_not(of_never),
    }
    return sampled | {"written": np.array(written), "gold": np.array(found["gold"]["metrics"]["bits_per_byte"])}


def error_of(scorer, ids: np.ndarray) -> str:
    """The error that scoring one position gives, as text."""
    try:
        scorer.score([ids], [np.array([1])])
    except FusionRayError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
