"""All models' scores of one held-out shard: the same documents, judged on the same bytes."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fusion_ray.distributions.score import answer_positions, read_topk
from fusion_ray.errors import CorruptArtifactError
from fusion_ray.report.statistics.calibration import Bins, bin_confidences, sum_bins
from fusion_ray.report.statistics.common_bytes import Answer, score_common_bytes
from fusion_ray.report.statistics.rates import OVERALL, Scores

UNLABELLED = "(no domain)"


class HeldOut(NamedTuple):
    """The held-out split as all models scored it.

    Attributes:
        scores: The documents that every model could score.
        ids: Their ids.
        places: Their shard and row.
        left_out: The others, with the reason.
        bins: Calibration bins of every model over its own answer tokens.
    """

    scores: Scores
    ids: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    left_out: dict[str, str]
    bins: dict[str, Bins]

    def place(self, identity: str) -> tuple[int, int]:
        """Shard and row of a document."""
        return self.places[self.ids.index(identity)]


def domain_label(domain: str | None) -> str:
    """A domain's name in the report; `overall` is taken by the mean of all.

    >>> domain_label(None), domain_label("overall")
    ('(no domain)', 'overall (domain)')
    """
    if not domain:
        return UNLABELLED
    return f"{domain} (domain)" if domain == OVERALL else domain


def compare_shard(chats: pa.Table, scored: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Score the documents of one shard on the bytes that all models cover; plain data, so that it can travel.

    Args:
        chats: The corpus shard.
        scored: The same rows as every model scored them, by model; columns of a distributions shard.

    Raises:
        CorruptArtifactError: A model's shard holds other rows than the corpus shard.
    """
    answers = {model: _answers(table) for model, table in scored.items()}
    result: dict[str, Any] = {"rows": [], "ids": [], "domains": [], "bytes": [], "nll": [], "left_out": {}}
    for row, chat in enumerate(chats.select(["id", "domain", "reason"]).to_pylist()):
        _check_ids(chat["id"], row, scored)
        row_answers = [found for model in scored if (found := answers[model][row]) is not None]
        common = score_common_bytes(row_answers) if len(row_answers) == len(scored) else None
        if common is None:
            result["left_out"][chat["id"]] = chat["reason"] or _why(row, scored)
            continue
        result["rows"].append(row)
        result["ids"].append(chat["id"])
        result["domains"].append(domain_label(chat["domain"]))
        result["bytes"].append(common.n_bytes)
        result["nll"].append(common.nll_M.tolist())
    result["bins"] = {
        model: [part.tolist() for part in _bins(table, result["rows"])] for model, table in scored.items()
    }
    return result


def _why(row: int, scored: Mapping[str, pa.Table]) -> str:
    for model, table in scored.items():
        if table["reason"][row].is_valid:
            return f"{model}: {table['reason'][row]}"
    return "cut by max_length before any boundary that all models share"


def _check_ids(identity: str, row: int, scored: Mapping[str, pa.Table]) -> None:
    for model, table in scored.items():
        found = table["id"][row].as_py() if row < len(table) else None
        if found != identity:
            raise CorruptArtifactError(
                f"held-out row {row}: the corpus has {identity!r}, the scores of {model} have {found!r}. "
                "Delete that model's folder and run again."
            )


def _answers(table: pa.Table) -> list[Answer | None]:
    real_T = read_topk(table).real_logprobs_T
    answers: list[Answer | None] = []
    start = 0
    for row in table.select(["turn_lengths", "boundaries", "n_bytes", "reason"]).to_pylist():
        if row["reason"] is not None:
            answers.append(None)
            continue
        stop = start + sum(row["turn_lengths"])
        boundaries_T = np.asarray(row["boundaries"], dtype=np.int64)
        answers.append(Answer(row["turn_lengths"], boundaries_T, real_T[start:stop], row["n_bytes"]))
        start = stop
    return answers


def _bins(table: pa.Table, usable: list[int]) -> Bins:
    """The probability of the most probable token, and whether it came, over the usable rows."""
    rows = table.take(np.array(usable, dtype=np.int64))
    topk = read_topk(rows)
    if not len(topk):
        return bin_confidences(np.empty(0), np.empty(0, dtype=bool))
    columns = rows.select(["input_ids", "turn_starts", "turn_lengths"]).to_pylist()
    real = [np.asarray(row["input_ids"])[answer_positions(row["turn_starts"], row["turn_lengths"])] for row in columns]
    confidence_T = np.exp(topk.logprobs_TK[:, 0].astype(np.float64))
    return bin_confidences(np.clip(confidence_T, 0.0, 1.0), topk.ids_TK[:, 0] == np.concatenate(real))


def join_shards(models: Iterable[str], parts: list[dict[str, Any]]) -> HeldOut:
    """Put the shards' results, in order, into one."""
    names = tuple(models)
    nll_NM = np.array([row for part in parts for row in part["nll"]], dtype=np.float64).reshape(-1, len(names))
    scores = Scores(
        names,
        nll_NM.T,
        np.array([n for part in parts for n in part["bytes"]], dtype=np.int64),
        np.array([domain for part in parts for domain in part["domains"]], dtype=object),
    )
    bins = {name: sum_bins([Bins(*map(np.array, part["bins"][name])) for part in parts]) for name in names}
    left_out = {identity: reason for part in parts for identity, reason in part["left_out"].items()}
    ids = tuple(identity for part in parts for identity in part["ids"])
    places = tuple((shard, row) for shard, part in enumerate(parts) for row in part["rows"])
    return HeldOut(scores, ids, places, left_out, bins)


def documents_table(heldout: HeldOut) -> pa.Table:
    """One row per held-out document that all models scored: id, domain, bytes, and each model's nll in nats."""
    scores = heldout.scores
    columns = {"id": list(heldout.ids), "domain": scores.domains_N.tolist(), "n_bytes": scores.bytes_N}
    return pa.table(columns | {model: scores.row(model) for model in scores.models})
