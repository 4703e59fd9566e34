"""The result of a run in plain words: fusion helped, did not help, or the run cannot tell."""

from collections.abc import Mapping
from typing import NamedTuple

from fusion_ray.report.statistics.bootstrap import Difference
from fusion_ray.report.statistics.rates import OVERALL

_FEW_DOCUMENTS = 30


class Verdict(NamedTuple):
    """Whether fusion helped (None: this run cannot tell), in a sentence or two, with notes on what to beware of."""

    helped: bool | None
    text: str
    notes: tuple[str, ...]


def judge(rates: Mapping[str, float], differences: Mapping[str, Mapping[str, Difference]], n_documents: int) -> Verdict:
    """Decide from intervals, never from a point alone.

    Fusion helped when the merged model is surely better than every arm of the run that could explain its gain
    without the sources' knowledge: the pivot, plain fine-tuning (`sft`, and with as many updates as a target that
    starts from it, `longer`), and teachers that know nothing of the document (`shuffled`) or nothing new (`self`),
    where the run has them.

    Args:
        rates: Overall bits per byte by model.
        differences: By pair (`merged - ARM`), in every domain and overall.
        n_documents: Held-out documents behind the numbers.
    """
    overall = {pair: found[OVERALL] for pair, found in differences.items()}
    notes = _notes(differences.get("merged - sft", {}), n_documents)
    for arm in ("pivot", "sft", "longer", "shuffled", "self"):
        difference = overall.get(f"merged - {arm}")
        if difference is not None and difference.high >= 0:
            return Verdict(False, f"Fusion did not help: {_failure(arm, rates, difference)}", notes)
    if "merged - sft" not in overall:
        text = (
            f"Whether fusion helped cannot be told: the merged model is better than the pivot "
            f"({_pair('pivot', rates, overall['merged - pivot'])}), but the run has no control arm `sft`, so plain "
            "fine-tuning on the same chats may do as well."
        )
        return Verdict(None, text, notes)
    text = (
        f"Fusion helped: the merged model is better than plain fine-tuning on the same chats "
        f"({_pair('sft', rates, overall['merged - sft'])}); the pivot stood at {rates['pivot']:.3f}."
    )
    return Verdict(True, text, notes)


def _failure(arm: str, rates: Mapping[str, float], difference: Difference) -> str:
    """What the merged model failed to beat."""
    what = {
        "pivot": "the pivot it started from",
        "sft": "plain fine-tuning on the same chats",
        "longer": "plain fine-tuning on the same chats, with as many updates",
        "shuffled": "teaching with the distributions of other documents, so its gain is not the sources' knowledge",
        "self": "teaching with the pivot's own distributions, so its gain is not the sources' knowledge",
    }[arm]
    worse = "is worse than" if difference.low > 0 else "cannot be told apart from"
    head, comma, tail = what.partition(",")
    return f"the merged model {worse} {head} ({_pair(arm, rates, difference)}){comma}{tail}."


def _pair(arm: str, rates: Mapping[str, float], difference: Difference) -> str:
    p_value = "p < 0.001" if difference.p_value < 0.001 else f"p = {difference.p_value:.2g}"
    interval = f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    return f"{rates['merged']:.3f} against {rates[arm]:.3f} bits per byte, {interval}, {p_value}"


def _notes(merged_sft: Mapping[str, Difference], n_documents: int) -> tuple[str, ...]:
    notes = []
    worse = [domain for domain, found in merged_sft.items() if domain != OVERALL and found.low > 0]
    if worse:
        notes.append(f"Against sft the merged model is surely worse in: {', '.join(worse)}.")
    if n_documents < _FEW_DOCUMENTS:
        notes.append(f"Only {n_documents} held-out documents: the intervals are rough, take them as a hint.")
    return tuple(notes)
