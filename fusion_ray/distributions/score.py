"""Score a shard of the corpus with one model: render its chats, ask the scorer, lay the results out as columns.

Used by the stages `distributions` (top-k of every answer position) and `report` (nll only); no Ray here.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fusion_ray.chat import Rendered, Template, break_off, choose_template, cut, render_all
from fusion_ray.chat.answer_tokens import AnswerTokens, offsets_of
from fusion_ray.errors import AlignmentError, EngineError, FusionRayError
from fusion_ray.models.folders import load_tokenizer, longest_sequence, read_config
from fusion_ray.models.scorer import Scorer
from fusion_ray.recipe import Distributions, Model, OpenAIEngine
from fusion_ray.storage.attempts import Attempts
from fusion_ray.storage.rejections import list_rejected
from fusion_ray.storage.topk import TopK

# If more rows of one shard than this kill the engine, each alone, the engine itself is to blame.
_MOST_KILLERS = 4


RENDERED_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("turn_starts", pa.list_(pa.int32())),
        ("turn_lengths", pa.list_(pa.int32())),
        ("turn_ended", pa.list_(pa.bool_())),
        ("boundaries", pa.list_(pa.int32())),
        ("n_bytes", pa.int32()),
        ("cut", pa.bool_()),
        ("reason", pa.string()),
    ]
)
DISTRIBUTIONS_SCHEMA = pa.schema(
    [
        *(field for field in RENDERED_SCHEMA if field.name not in ("cut", "reason")),
        ("real_logprobs", pa.list_(pa.float32())),
        ("topk_ids", pa.list_(pa.int32())),
        ("topk_logprobs", pa.list_(pa.float32())),
        ("reason", pa.string()),
    ]
)


class Scored(NamedTuple):
    """The usable rows of a model's shard, position by position.

    Attributes:
        answers: Its answer tokens.
        topk: Its distributions at them.
        row_T: Row of each position, counted among the usable ones.
        bytes_T: Bytes that each answer token stands for.
    """

    answers: AnswerTokens
    topk: TopK
    row_T: np.ndarray
    bytes_T: np.ndarray


class RenderSettings(NamedTuple):
    """How conversations become token ids: in which template, and what happens to those that are too long."""

    template: Template
    max_length: int
    too_long: str


def open_reader(
    model: Model, settings: Distributions, folder: str, pivot_folder: str | None = None
) -> tuple[Any, RenderSettings]:
    """The tokenizer of a model, and how the recipe wants it to read chats.

    Args:
        model: The model's part of the recipe.
        settings: The recipe's distributions section.
        folder: Where the model's files lie.
        pivot_folder: Where the pivot's lie; needed for `template: pivot`.
    """
    tokenizer = load_tokenizer(folder, model.trust_remote_code)
    pivot = load_tokenizer(pivot_folder) if pivot_folder else None
    template = choose_template(model.template or settings.template, tokenizer, pivot)
    limits = [settings.max_length]
    if not isinstance(model.engine or settings.engine, OpenAIEngine):  # a server knows its own limit
        limits.append(longest_sequence(read_config(folder)) or settings.max_length)
    return tokenizer, RenderSettings(template, min(limits), settings.too_long)


def render_rows(chats: pa.Table, tokenizer: Any, settings: RenderSettings) -> pa.Table:
    """Tokenise the chats of a corpus shard in the model's template, row by row in order.

    A row that this tokenizer or template cannot express keeps its place with a reason. Of an answer that was broken off
    (column `ended`, in shards of answers) the end of the turn is not an answer token.
    """
    rows = [{"id": chat["id"], "reason": chat["reason"]} for chat in chats.select(["id", "reason"]).to_pylist()]
    ended = chats["ended"].to_pylist() if "ended" in chats.column_names else [True] * len(rows)
    usable = [number for number, row in enumerate(rows) if row["reason"] is None]
    conversations = chats["messages"].take(np.array(usable, dtype=np.int64)).to_pylist()
    for number, rendered in zip(usable, render_all(tokenizer, conversations, settings.template), strict=True):
        try:
            whole = _as_it_ended(rendered, ended[number])
            fitted = fit(whole, settings)
            rows[number] |= _columns_of(fitted) | {"cut": fitted is not whole}
        except FusionRayError as error:
            rows[number]["reason"] = str(error)
    return pa.Table.from_pylist(rows, schema=RENDERED_SCHEMA)


def _as_it_ended(rendered: Rendered | FusionRayError, ended: bool) -> Rendered:
    if isinstance(rendered, FusionRayError):
        raise rendered
    return rendered if ended else break_off(rendered)


def fit(rendered: Rendered, settings: RenderSettings) -> Rendered:
    """A conversation within the longest length: cut, or refused if the recipe says so.

    Raises:
        AlignmentError: It is too long and may not be cut, or no answer token stands within the length.
    """
    if len(rendered.input_ids) <= settings.max_length:
        return rendered
    if settings.too_long == "reject":
        raise AlignmentError(f"{len(rendered.input_ids)} tokens, more than max_length {settings.max_length}")
    return cut(rendered, settings.max_length)


def _columns_of(rendered: Rendered) -> dict[str, Any]:
    return {
        "input_ids": rendered.input_ids,
        "turn_starts": [turn.start for turn in rendered.turns],
        "turn_lengths": [len(turn.boundaries) for turn in rendered.turns],
        "turn_ended": [turn.ended for turn in rendered.turns],
        "boundaries": np.concatenate([turn.boundaries for turn in rendered.turns]),
        "n_bytes": rendered.n_bytes,
    }


def score_rows(rendered: pa.Table, scorer: Scorer) -> pa.Table:
    """Ask the scorer for the distributions at every answer position of a rendered shard.

    A row whose numbers are not finite is rejected with its reason; the others are not touched by it.
    """
    usable = [row for row, reason in enumerate(rendered["reason"].to_pylist()) if reason is None]
    sequences = [np.asarray(rendered["input_ids"][row].as_py(), dtype=np.int32) for row in usable]
    positions = [
        answer_positions(rendered["turn_starts"][r].as_py(), rendered["turn_lengths"][r].as_py()) for r in usable
    ]
    scored = dict(zip(usable, scorer.score(sequences, positions), strict=True)) if usable else {}
    rows = []
    for number, row in enumerate(rendered.to_pylist()):
        topk = scored.get(number)
        if topk is not None:
            try:
                topk.check(f"row {row['id']}")
                row |= _topk_columns(topk)
            except FusionRayError as error:
                row = {"id": row["id"], "reason": str(error)}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=DISTRIBUTIONS_SCHEMA)


def score_surviving(rendered: pa.Table, scorer: Scorer, attempts: Attempts) -> pa.Table:
    """Score a shard whose earlier attempts may have died; see `score_rows`.

    The first retry scores all rows together once more, and gives the bytes of an undisturbed run: most processes die
    of something else than their rows. After the second death each row is scored alone, which may change the last
    bits, and a row during which the process dies again is rejected.

    Raises:
        EngineError: So many rows kill the engine, each alone, that the cause is not in them.
    """
    if len(attempts.killers) >= _MOST_KILLERS:
        attempts.end()
        row, why = next(iter(attempts.killers.items()))
        raise EngineError(
            f"the engine died {attempts.deaths_together} times over a whole shard, then over {_MOST_KILLERS} of its "
            f"rows one by one, so it is the engine and not the rows (row {rendered['id'][row]}: {why}). Check its "
            "settings, memory and device, and run again."
        )
    rendered = _without_killers(rendered, attempts)
    if attempts.deaths_together < 2:
        attempts.begin()
        return score_rows(rendered, scorer)
    parts = []
    for row in range(len(rendered)):
        alone = rendered.slice(row, 1)
        if not alone["reason"][0].is_valid:
            attempts.begin(row)
        parts.append(score_rows(alone, scorer))
    return pa.concat_tables(parts)


def _without_killers(rendered: pa.Table, attempts: Attempts) -> pa.Table:
    if not attempts.killers:
        return rendered
    rows = rendered.to_pylist()
    for row, why in attempts.killers.items():
        rows[row] = {"id": rows[row]["id"], "reason": f"the engine died each time it read this row: {why}"}
    return pa.Table.from_pylist(rows, schema=RENDERED_SCHEMA)


def answer_positions(turn_starts: list[int], turn_lengths: list[int]) -> np.ndarray:
    """Indices in input_ids of the answer tokens, turn after turn, int64."""
    spans = [np.arange(s, s + n) for s, n in zip(turn_starts, turn_lengths, strict=True)]
    return np.concatenate(spans) if spans else np.empty(0, dtype=np.int64)


def _topk_columns(topk: TopK) -> dict[str, Any]:
    return {
        "real_logprobs": topk.real_logprobs_T,
        "topk_ids": topk.ids_TK.reshape(-1),
        "topk_logprobs": topk.logprobs_TK.reshape(-1),
    }


def read_topk(table: pa.Table) -> TopK:
    """All distributions of a shard's usable rows, one after the other, as one TopK.

    Args:
        table: A distributions or fused shard, or a part of one.
    """
    real_T = flat_values(table, "real_logprobs", np.float32)
    ids = flat_values(table, "topk_ids", np.int32)
    width = len(ids) // len(real_T) if len(real_T) else 1
    return TopK(ids.reshape(-1, width), flat_values(table, "topk_logprobs", np.float32).reshape(-1, width), real_T)


def read_scored(table: pa.Table) -> Scored:
    """The answers and distributions of a shard's rows, all of them usable."""
    lengths = [sum(row) for row in table["turn_lengths"].to_pylist()]
    turns = table["turn_lengths"].to_pylist()
    spans = zip(table["input_ids"].to_pylist(), table["turn_starts"].to_pylist(), turns, strict=True)
    ids = [np.asarray(row, dtype=np.int32)[answer_positions(starts, counts)] for row, starts, counts in spans]
    boundaries_T = flat_values(table, "boundaries", np.int32)
    answers = AnswerTokens(
        ids_T=np.concatenate([*ids, np.zeros(0, dtype=np.int32)]),
        boundaries_T=boundaries_T,
        turn_offsets=offsets_of([count for row in turns for count in row]),
        ended=flat_values(table, "turn_ended", bool),
        row_offsets=offsets_of([len(row) for row in turns]),
    )
    row_T = np.repeat(np.arange(len(lengths)), lengths)
    before_T = np.concatenate([[0], boundaries_T])[:-1]
    starts = answers.turn_offsets[:-1]
    before_T[starts[starts < len(before_T)]] = 0
    return Scored(answers, read_topk(table), row_T, boundaries_T - before_T)


def flat_values(table: pa.Table, column: str, dtype: Any) -> np.ndarray:
    """The values of a list column, concatenated over rows; null rows hold none."""
    return table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=False)


def count_cut(rendered: pa.Table) -> int:
    """Rows that were too long and have lost their end."""
    return rendered["cut"].to_pylist().count(True)


def sum_scores(scored: pa.Table) -> dict[str, Any]:
    """Totals of a scored shard: answer tokens, bytes, nll in nats, and the rejected rows."""
    real = flat_values(scored, "real_logprobs", np.float64)
    return {
        "rejected": list_rejected(scored["id"].to_pylist(), scored["reason"].to_pylist()),
        "answer_tokens": len(real),
        "answer_bytes": int(np.nansum(scored["n_bytes"].to_numpy().astype(np.float64))) if len(scored) else 0,
        "nll_nats": float(-real.sum()),
    }
