"""What GOLD, the cross-tokenizer distillation of TRL, hands from a source to a pivot, by TRL's own code.

GOLD (`trl.experimental.gold`, use_extended_uld and uld_use_hybrid_loss) forms a loss against the live source model and
stores no distributions. What it compares can be counted all the same: it groups tokens by common byte boundaries, takes
one distribution for each group, and compares tokens of equal spelling entry by entry, all others sorted by probability.
TRL is downloaded by name into the cache, beside the environment and not in it.
"""

import subprocess
import sys
import warnings
from typing import Any, NamedTuple

import numpy as np
from real_models import cache_folder
from tokenizers import Tokenizer

from fusion_ray.chat.answer_tokens import AnswerTokens
from fusion_ray.storage.topk import TopK

TRL = ("trl==1.16.0", "datasets", "dill", "multiprocess", "xxhash")


class Gold(NamedTuple):
    """Counts over the answers of a shard.

    Attributes:
        positions: Pivot tokens.
        taught: Groups in which one pivot position learns from one source position.
        wrong_byte: Of these, those whose two positions begin at different bytes.
        mass_kept: Mean kept probability at taught source positions that has a token of equal spelling; GOLD then scales
            both sides of a group of several tokens by the probabilities of its other tokens, which is not counted.
        mass_lost: Mean kept probability there that is only compared by rank.
        real_lost: Taught pivot positions whose real token has no such probability.
    """

    positions: int
    taught: int
    wrong_byte: int
    mass_kept: float
    mass_lost: float
    real_lost: int


def measure_gold(
    strategy: str, pivot: Tokenizer, ours: AnswerTokens, source: Tokenizer, theirs: AnswerTokens, topk: TopK
) -> Gold:
    """Count what GOLD compares, with the kept entries as the source's probabilities and zero elsewhere.

    Args:
        strategy: `observed`, TRL's default, compares the distributions at a group's first positions, and reads them
            one position late: those *after* the token. `bayesian` compares those at its last positions.
        pivot, source: The two tokenizers.
        ours, theirs: The same answers, each as one turn.
        topk: The source's distributions, row t over the token at t.
    """
    loss = _loss(strategy, pivot, source)
    mapped = np.full(1 + max(loss._vocab_mapping), -1, dtype=np.int64)
    mapped[list(loss._vocab_mapping)] = list(loss._vocab_mapping.values())
    at, late = (0, 1) if strategy == "observed" else (-1, 0)
    found = []
    for turn in range(len(ours.ended)):
        spans, spans_source = _spans(ours, turn), _spans(theirs, turn)
        for group, group_source in zip(*loss._align_by_byte_offsets(spans, spans_source), strict=True):
            if not group or not group_source:
                continue
            read, read_source = group[at] + late, group_source[at] + late
            if read == len(spans) or read_source == len(spans_source):
                continue
            row = int(theirs.turn_offsets[turn]) + read_source
            ids_K, mass_K = topk.ids_TK[row], np.exp(topk.logprobs_TK[row].astype(np.float64))
            ids_K = np.where((ids_K >= 0) & (ids_K < len(mapped)), mapped[ids_K.clip(0, len(mapped) - 1)], -1)
            real = ours.ids_T[ours.turn_offsets[turn] + read]
            wrong = spans[read][0] != spans_source[read_source][0]
            found.append((wrong, mass_K[ids_K >= 0].sum(), mass_K[ids_K < 0].sum(), real not in ids_K))
    wrong_G, kept_G, lost_G, gone_G = np.array(found, dtype=np.float64).reshape(-1, 4).T
    return Gold(
        len(ours), len(found), int(wrong_G.sum()), float(kept_G.mean()), float(lost_G.mean()), int(gone_G.sum())
    )


def _spans(answers: AnswerTokens, turn: int) -> list[list[int]]:
    """First and last byte of every token of a turn."""
    ends = answers.boundaries_T[answers.turn_offsets[turn] : answers.turn_offsets[turn + 1]].tolist()
    return [[start, end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _loss(strategy: str, pivot: Tokenizer, source: Tokenizer) -> Any:
    """TRL's loss object, which holds the vocabulary mapping and the alignment."""
    target = cache_folder() / "python-trl"
    if not (target / "trl").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
        subprocess.run([*command, *TRL], check=True)
    if str(target) not in sys.path:
        sys.path.append(str(target))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gold.gold_trainer import ULDLoss

    class Settings:
        uld_crossentropy_weight, uld_distillation_weight = 0.0, 1.0
        uld_student_temperature = uld_teacher_temperature = 1.0
        uld_skip_student_eos = uld_skip_teacher_eos = True
        use_extended_uld = uld_use_hybrid_loss = True
        uld_token_merge_strategy = strategy

    return ULDLoss(Settings, pivot, source)
