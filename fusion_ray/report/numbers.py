"""From held-out documents to the report's numbers: rates, differences, oracle, calibration, verdict."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_ray.errors import ArtifactError
from fusion_ray.recipe import CONTROL_ARMS
from fusion_ray.report.heldout import HeldOut
from fusion_ray.report.statistics.bootstrap import Difference, Resamples, compare_models, resample_rates
from fusion_ray.report.statistics.calibration import calibration_error
from fusion_ray.report.statistics.oracle import oracle_nll, pick_oracle, recovered_share
from fusion_ray.report.statistics.rates import OVERALL, Scores, measure_micro_rates, measure_rates
from fusion_ray.report.statistics.verdict import judge

ORACLE = "oracle"


def measure(heldout: HeldOut, draws: int, seed: int) -> dict[str, Any]:
    """Everything that the held-out documents say, as plain data for report.json.

    Args:
        heldout: Scores of `pivot`, every `source:NAME`, `target:NAME`, control arm and `merged`.
        draws: Of the bootstrap.
        seed: The recipe's.

    Raises:
        ArtifactError: No document could be scored by all models.
    """
    if not heldout.ids:
        examples = "; ".join(f"{key}: {value}" for key, value in list(heldout.left_out.items())[:3])
        raise ArtifactError(
            f"report: none of the {len(heldout.left_out)} held-out chats was scored by every model. First reasons: "
            f"{examples or 'the held-out split is empty'}. Raise corpus.heldout or distributions.max_length."
        )
    scores = heldout.scores
    asked = [row for row, model in enumerate(scores.models) if model == "pivot" or model.startswith("source:")]
    with_oracle = scores.with_model(ORACLE, oracle_nll(scores.nll_MN[asked]))
    rates = measure_rates(with_oracle)
    micro = measure_micro_rates(with_oracle)
    pairs = differences_to_report(scores.models)
    resamples = resample_rates(scores, draws, derive_seed(seed, "report bootstrap"))
    compared = {f"{a} - {b}": _compare(resamples, rates, a, b) for a, b in pairs}
    overall = {model: by_domain[OVERALL] for model, by_domain in rates.items()}
    verdict = judge(overall, compared, len(heldout.ids))
    oracle_rates = rates.pop(ORACLE)
    micro.pop(ORACLE)
    return {
        "verdict": verdict._asdict(),
        "bits_per_byte": rates,
        "bits_per_byte_micro": micro,
        "differences": {pair: {d: x._asdict() for d, x in found.items()} for pair, found in compared.items()},
        "oracle": {
            "bits_per_byte": oracle_rates,
            "chosen": _count_choices(scores, asked),
            "recovered_share": _recovered(rates, oracle_rates),
        },
        "calibration": _calibration(heldout),
        "heldout": _describe(heldout),
    }


def derive_seed(seed: int, name: str) -> int:
    """A seed of its own for each use, from the recipe's seed and the use's name."""
    return int.from_bytes(hashlib.sha256(f"{name}:{seed}".encode()).digest()[:8], "big")


def differences_to_report(models: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs whose difference answers a question, first minus second."""
    controls = [model for model in CONTROL_ARMS if model in models]
    targets = [model for model in models if model.startswith("target:")]
    pairs = [("merged", arm) for arm in [*controls, "pivot"]]
    pairs += [(arm, "pivot") for arm in controls]
    pairs += [(target, "sft" if "sft" in models else "pivot") for target in targets]
    return pairs + [("merged", target) for target in targets]


def _compare(resamples: Resamples, rates: Mapping[str, Mapping[str, float]], a: str, b: str) -> dict[str, Difference]:
    return {domain: compare_models(resamples, a, b, domain, rates[a][domain] - rates[b][domain]) for domain in rates[a]}


def _count_choices(scores: Scores, asked: list[int]) -> dict[str, dict[str, int]]:
    names = [scores.models[row] for row in asked]
    chosen_N = pick_oracle(scores.nll_MN[asked])
    counts: dict[str, dict[str, int]] = {}
    for domain in sorted(set(scores.domains_N.tolist())):
        found = Counter(chosen_N[scores.domains_N == domain].tolist())
        counts[str(domain)] = {name: found.get(row, 0) for row, name in enumerate(names)}
    return counts


def _recovered(
    rates: Mapping[str, Mapping[str, float]], oracle: Mapping[str, float]
) -> dict[str, dict[str, float | None]]:
    trained = [model for model in rates if model != "pivot" and not model.startswith("source:")]
    return {
        model: {
            domain: recovered_share(rates["pivot"][domain], rates[model][domain], oracle[domain]) for domain in oracle
        }
        for model in trained
    }


def _calibration(heldout: HeldOut) -> dict[str, Any]:
    return {
        model: {
            "error": calibration_error(bins),
            "accuracy": float(bins.right.sum() / bins.tokens.sum()),
            "tokens": int(bins.tokens.sum()),
            "bins": {
                "tokens": bins.tokens.astype(int).tolist(),
                "confidence": _means(bins.confidence, bins.tokens),
                "accuracy": _means(bins.right, bins.tokens),
            },
        }
        for model, bins in heldout.bins.items()
    }


def _means(sums: np.ndarray, count: np.ndarray) -> list[float | None]:
    return [float(total / n) if n else None for total, n in zip(sums, count, strict=True)]


def _describe(heldout: HeldOut) -> dict[str, Any]:
    scores = heldout.scores
    domains = sorted(set(scores.domains_N.tolist()))
    return {
        "documents": len(heldout.ids),
        "bytes": int(scores.bytes_N.sum()),
        "documents_by_domain": {d: int((scores.domains_N == d).sum()) for d in domains},
        "bytes_by_domain": {d: int(scores.bytes_N[scores.domains_N == d].sum()) for d in domains},
        "left_out": heldout.left_out,
    }
