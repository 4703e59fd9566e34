"""Does fusion work, and which settings are best: tables over seeds, with controls.

    python bench/quality/run.py                                  # every table, five seeds: hours on two cores
    python bench/quality/run.py main --seeds 1                   # six minutes
    python bench/quality/run.py --folder quality                 # where models and runs are kept
    python bench/quality/run.py main --seeds 1 --first_seed 3   # seeds may run side by side, and be read together later
    python bench/quality/run.py main --gpus 0.2                  # five models share a GPU
    python bench/quality/run.py main --figures docs/figures      # the effects as pictures besides
    python bench/quality/run.py start --details --than "from SFT"   # each arm in detail; all less this one

A trial that was run before is read, and of a new one only what differs is made: models, distributions, fused sets and
targets with the same fingerprint are linked. Tables go to the terminal; every trial's numbers, with machine and
versions, to bench/results/quality.jsonl.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from arms import MAIN, RECIPE, TABLES, Arm
from effects import Effect, compare
from figures import draw_curve, draw_effects
from measurement import Measurement, report
from testbeds import Testbed
from trials import Outcome, run_trial

from fusion_ray.progress import Progress
from fusion_ray.report.statistics.oracle import recovered_share
from fusion_ray.report.statistics.rates import OVERALL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=list(TABLES), help=", ".join(TABLES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--gpus", type=float, default=0, help="for each model that scores or is trained")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    parser.add_argument("--figures", type=Path, help="folder for a picture of every table")
    parser.add_argument("--than", help="the arm that the others of a table are compared with; the first unless given")
    parser.add_argument("--details", action="store_true", help="each arm against its controls, by domain and by seed")
    given = parser.parse_args()
    unknown = [name for name in given.tables if name not in TABLES]
    if unknown:
        parser.error(f"no table {', '.join(unknown)}; there are: {', '.join(TABLES)}")
    without = [name for name in given.tables if given.than not in (None, *TABLES[name])]
    if without:
        parser.error(f"no arm {given.than!r} in table {without[0]}; there are: {', '.join(TABLES[without[0]])}")
    trials = _Trials(given.folder, range(given.first_seed, given.first_seed + given.seeds), given.gpus)
    for name in given.tables:
        than = given.than or next(iter(TABLES[name]))
        rows = print_main(trials(MAIN)) if name == "main" else print_table(name, TABLES[name], trials, than)
        if given.details and name != "main":
            print_details(name, TABLES[name], trials)
        if given.figures:
            title = "merged less ..." if name == "main" else f"merged, less {than}"
            draw_effects(given.figures / f"quality-{name}.svg", title, rows)
            if name in CURVES:
                draw_curve(given.figures / f"quality-{name}-curve.svg", CURVES[name], trials.shares(TABLES[name]))


class _Trials:
    """Runs each arm once for every seed."""

    def __init__(self, folder: Path, seeds: range, gpus: float) -> None:
        self.folder, self.seeds, self.gpus = folder, seeds, gpus
        self.found: dict[str, list[Outcome]] = {}

    def __call__(self, arm: Arm) -> list[Outcome]:
        if repr(arm) not in self.found:
            self.found[repr(arm)] = [
                run_trial(self.folder, Testbed(seed=seed), arm, arm in (RECIPE, MAIN), _tell, self.gpus)
                for seed in self.seeds
            ]
        return self.found[repr(arm)]

    def shares(self, arms: dict[str, Arm]) -> dict[str, dict[float, list[float]]]:
        """What SFT and merged recover of the oracle's gain, by the arms' labels as numbers, for every seed."""
        found = {float(label): self(arm) for label, arm in arms.items()}
        return {
            model: {place: [_recovered(outcome, model) for outcome in found[place]] for place in sorted(found)}
            for model in ("sft", "merged")
        }


def _recovered(outcome: Outcome, model: str) -> float:
    share = outcome.report["oracle"]["recovered_share"][model][OVERALL]
    return float("nan") if share is None else float(share)


def _tell(progress: Progress) -> None:
    if progress.done == progress.total:
        print(f"  {progress.what}: {progress.detail}", file=sys.stderr, flush=True)


Rows = list[tuple[str, Effect]]
# Tables whose arms are points on an axis, and what it is called.
CURVES = {
    "lambda": "lambda: weight of gold",
    "epochs": "epochs",
    "answers": "answers to each chat",
    "rows": "chats of each domain to learn from",
    "strength": "tokens the sources are trained on, times the demo's",
}


def print_main(found: list[Outcome], case: str = "") -> Rows:
    """The claim itself: merged against pivot, SFT, the other controls and the targets.

    Args:
        found: What an arm measured, for every seed.
        case: What the measurements are called, before what is less what.
    """
    print(
        "| merged less | bits per byte | 95 % interval | p | better in seeds | in seed sd |\n|---|---|---|---|---|---|"
    )
    others = [name for name in found[0].scores.models if name != "merged" and not name.startswith("source:")]
    rows = [(other, compare([(outcome, "merged", outcome, other) for outcome in found])) for other in others]
    for other, effect in rows:
        print(f"| {other} | {_cells(effect)} |", flush=True)
    controls = [name for name in others if name not in ("pivot", "sft") and not name.startswith("target:")]
    less_sft = {name: compare([(outcome, name, outcome, "sft") for outcome in found]) for name in controls}
    for control, effect in less_sft.items():
        print(f"| ({control} less sft) | {_cells(effect)} |")
    print(f"| (sft less pivot) | {_cells(compare([(outcome, 'sft', outcome, 'pivot') for outcome in found]))} |")
    shares = ", ".join(_percent([_recovered(outcome, "merged")]) for outcome in found)
    print(f"\nRecovered share of the oracle's gain: {shares}\n")
    print_domains(found, case)
    print_calibration(found)
    sft = dict(rows)["sft"]
    holds = sft.better == sft.seeds and sft.p_value < 0.001
    _report(f"{case}merged less sft", sft, "< 0 in all seeds, p < 0.001", holds)
    if "shuffled" in less_sft:
        effect = less_sft["shuffled"]
        _report(f"{case}shuffled less sft, share of merged's gain", effect, "<= 5 %", effect.value >= 0.05 * sft.value)
    return rows


def print_details(name: str, arms: dict[str, Arm], trials: Callable[[Arm], list[Outcome]]) -> None:
    """What `main` prints, for every arm of a table."""
    for label, arm in arms.items():
        print(f"\n{name}: {label}\n")
        print_main(trials(arm), f"{name}: {label}, ")


def print_domains(found: list[Outcome], case: str) -> None:
    """Domain by domain: merged against SFT and against the target that is best there; `case` as `print_main` has it."""
    print("| domain | pivot | sft | best target | merged | oracle | less sft | less best target | p | recovered |")
    print("|---" * 10 + "|")
    rows: Rows = []
    for domain in (*sorted(set(found[0].scores.domains_N)), OVERALL):
        best = _best_target(found, domain)
        pivot, sft, target, merged = (_rate(found, model, domain) for model in ("pivot", "sft", best, "merged"))
        own = compare([(outcome, "merged", outcome, "sft") for outcome in found], domain)
        beside = compare([(outcome, "merged", outcome, best) for outcome in found], domain)
        oracle = float(np.mean([outcome.report["oracle"]["bits_per_byte"][domain] for outcome in found]))
        share = recovered_share(pivot, merged, oracle)
        print(
            f"| {domain} | {pivot:.3f} | {sft:.3f} | {target:.3f} ({best.removeprefix('target:')}) "
            f"| {merged:.3f} | {oracle:.3f} | {own.value:+.4f} | {beside.value:+.4f} {beside.interval} "
            f"| {beside.p_value:.4f} | {_percent([math.nan if share is None else share])} |"
        )
        rows.append((domain, beside))
    for domain, effect in rows:
        _report(f"{case}merged less the best target, {domain}", effect, "<= 0", effect.value <= 0)


def print_calibration(found: list[Outcome]) -> None:
    """How far each model's confidence in its first choice is off, and how often that is right; means over the seeds.

    Only models of the pivot's tokenizer compare: the others choose among other tokens.
    """
    print("\n| model | calibration error | lowest and highest seed | first choice right |\n|---|---|---|---|")
    for model in found[0].report["calibration"]:
        if model.startswith("source:"):
            continue
        bins = [outcome.report["calibration"][model] for outcome in found]
        errors = [each["error"] for each in bins]
        right = np.mean([each["accuracy"] for each in bins])
        print(f"| {model} | {np.mean(errors):.3f} | {min(errors):.3f}, {max(errors):.3f} | {right:.1%} |")


def print_table(name: str, arms: dict[str, Arm], trials: Callable[[Arm], list[Outcome]], than: str) -> Rows:
    """Every arm's merged model, beside that of the arm `than`, the SFT control of its own testbed, and its targets."""
    print(
        f"\n| {name} | merged | less {than} | 95 % interval | p | better in seeds | less its SFT | 95 % interval "
        "| worst domain | recovered | by SFT |"
    )
    print("|---" * 11 + "|")
    compared = trials(arms[than])
    rows: Rows = []
    for label, arm in arms.items():
        found = trials(arm)
        beside = "| | | |"
        if label != than:
            effect = compare([(a, "merged", b, "merged") for a, b in zip(found, compared, strict=True)])
            beside = f"{effect.value:+.4f} | {effect.interval} | {_p(effect)} | {effect.better} of {effect.seeds} |"
            rows.append((label, effect))
        rate = _rate(found, "merged", OVERALL)
        own = compare([(outcome, "merged", outcome, "sft") for outcome in found])
        merged, sft = (_percent([_recovered(outcome, model) for outcome in found]) for model in ("merged", "sft"))
        beside_sft = f"{own.value:+.4f} | {own.interval}"
        worst = _worst_domain(found)
        print(f"| {label} | {rate:.4f} | {beside} {beside_sft} | {worst} | {merged} | {sft} |", flush=True)
    for label, effect in rows:
        _report(f"{name}: {label} less {than}", effect, None, None)
    return rows


def _worst_domain(found: list[Outcome]) -> str:
    """The domain where merged stands worst against the target that is best there: bits per byte with their interval."""
    domains = sorted(set(found[0].scores.domains_N))
    best = {domain: _best_target(found, domain) for domain in domains}
    worst = max(domains, key=lambda domain: _rate(found, "merged", domain) - _rate(found, best[domain], domain))
    effect = compare([(outcome, "merged", outcome, best[worst]) for outcome in found], worst)
    return f"{effect.value:+.4f} {effect.interval} ({worst})"


def _best_target(found: list[Outcome], domain: str) -> str:
    targets = [name for name in found[0].scores.models if name.startswith("target:")]
    return min(targets, key=lambda target: _rate(found, target, domain))


def _rate(found: list[Outcome], model: str, domain: str) -> float:
    """Bits per byte, mean over the seeds."""
    return float(np.mean([outcome.report["bits_per_byte"][model][domain] for outcome in found]))


def _percent(shares: list[float]) -> str:
    """Their mean; a dash where the oracle gains too little in one of them to recover a share of it."""
    mean = float(np.mean(shares))
    return "-" if math.isnan(mean) else f"{mean:.0%}"


def _p(effect: Effect) -> str:
    return "< 0.001" if effect.p_value < 0.001 else f"{effect.p_value:.3f}"


def _cells(effect: Effect) -> str:
    spread = "-" if effect.in_sd is None else f"{effect.in_sd:+.1f}"
    better = f"{effect.better} of {effect.seeds}"
    return f"{effect.value:+.4f} | {effect.interval} | {effect.p_value:.4f} | {better} | {spread}"


def _report(case: str, effect: Effect, goal: str | None, holds: bool | None) -> None:
    described = f"{case}, {effect.seeds} seeds, 95 % {effect.interval}, p = {effect.p_value:.4f}"
    report(Measurement("quality", described, "bits per byte", effect.value, goal=goal, holds=holds))


if __name__ == "__main__":
    main()
