"""Fused shards as rows that a trainer can take in any order, and batches of them ready for the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from fusion_ray.errors import CorruptArtifactError, RecipeError
from fusion_ray.recipe import Targets
from fusion_ray.storage.topk import ANCHORED, NO_TEACHER
from fusion_ray.targets.packing import Batch, lay_out
from fusion_ray.targets.soft_target import SoftTarget, gold_target, soft_target

COLUMNS = ["id", "input_ids", "turn_starts", "turn_lengths", "chosen", "topk_ids", "topk_logprobs", "reason"]


class TrainingRow(NamedTuple):
    """One conversation in the pivot's tokens, cut to the longest length that is trained on.

    Attributes:
        id: As in the corpus.
        input_ids: The whole conversation.
        answer_T: Index in `input_ids` of every answer token that has a token before it.
        chosen_T: Which model teaches there; NO_TEACHER, or ANCHORED where the model that training starts from does.
        ids_TK: Kept token ids, -1 where unused.
        logprobs_TK: Their log-probabilities, -inf where unused.
    """

    id: str
    input_ids: np.ndarray
    answer_T: np.ndarray
    chosen_T: np.ndarray
    ids_TK: np.ndarray
    logprobs_TK: np.ndarray


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """What the model is given at once.

    Attributes:
        input_ids_BW: B lanes of W tokens, several rows to a lane.
        position_ids_BW: Position of each token within its row.
        before_N: Flat position of the token before each answer token.
        target: What to learn at the N answer tokens.
        row_N: Row number of each answer token.
    """

    input_ids_BW: torch.Tensor
    position_ids_BW: torch.Tensor
    before_N: torch.Tensor
    target: SoftTarget
    row_N: np.ndarray

    def to(self, device: torch.device) -> "TrainingBatch":
        """The same batch on another device."""
        tokens = (self.input_ids_BW.to(device), self.position_ids_BW.to(device), self.before_N.to(device))
        return TrainingBatch(*tokens, self.target.to(device), self.row_N)


class TrainingRows:
    """Rows of fused shards, numbered through; a row that cannot be used has length 0 and keeps its number.

    Attributes:
        lengths_N: Tokens of each row after cutting.
        answers_N: Answer tokens of each row after cutting.
        n_cut: Rows that were longer than `max_length`.
        n_unusable: Rows without an answer token, or rejected by an earlier stage.
        n_anchored: Answer tokens at which the model that training starts from teaches.
    """

    def __init__(self, tables: Iterable[pa.Table], *, max_length: int) -> None:
        self._max_length = max_length
        self._shards = [_Shard(table) for table in tables]
        self._where = [(shard, row) for shard in self._shards for row in range(len(shard.ids))]
        whole_N = np.array([shard.length(row) for shard, row in self._where], dtype=np.int64)
        self.answers_N = np.array([len(self._answers(*where)) for where in self._where], dtype=np.int64)
        usable_N = self.answers_N > 0
        self.lengths_N = np.where(usable_N, np.minimum(whole_N, max_length), 0)
        self.n_cut = int((whole_N[usable_N] > max_length).sum())
        self.n_unusable = int((~usable_N).sum())
        some_anchored = any((shard.lists["chosen"].values == ANCHORED).any() for shard in self._shards)
        usable = np.flatnonzero(usable_N) if some_anchored else ()
        self.n_anchored = sum(int((self[number].chosen_T == ANCHORED).sum()) for number in usable)

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, number: int) -> TrainingRow:
        shard, row = self._where[number]
        answer_T = self._answers(shard, row)
        first = len(shard.answers(row)) - len(shard.answers(row)[shard.answers(row) > 0])
        taken = slice(first, first + len(answer_T))
        ids_TK, logprobs_TK = shard.top_k(row)
        chosen_T = shard.lists["chosen"][row][taken]
        input_ids = shard.lists["input_ids"][row][: self._max_length]
        return TrainingRow(shard.ids[row], input_ids, answer_T, chosen_T, ids_TK[taken], logprobs_TK[taken])

    def largest_id(self) -> int:
        """The largest token id anywhere, to be checked against the model's vocabulary."""
        values = [shard.lists[name].values for shard in self._shards for name in ("input_ids", "topk_ids")]
        return max((int(value.max()) for value in values if len(value)), default=-1)

    def id_of(self, number: int) -> str:
        """The corpus id of a row."""
        shard, row = self._where[number]
        return shard.ids[row]

    def answer_bytes(self, number: int) -> int:
        """UTF-8 bytes of a row's answer; 0 where they are not known or the row was cut."""
        shard, row = self._where[number]
        if shard.length(row) > self._max_length or not self.answers_N[number]:
            return 0
        return shard.answer_bytes(row)

    def _answers(self, shard: "_Shard", row: int) -> np.ndarray:
        answer_T = shard.answers(row)
        return answer_T[(answer_T > 0) & (answer_T < self._max_length)]


def make_batch(
    rows: TrainingRows,
    batch: Batch,
    settings: Targets,
    *,
    lambda_: float,
    pad_id: int,
) -> TrainingBatch:
    """Lay a batch's rows side by side and gather their targets.

    Args:
        rows: All rows.
        batch: Which of them, and where they lie.
        settings: Tail and temperature of the targets.
        lambda_: Weight of the gold token where a model teaches.
        pad_id: Fills what no row needs.
    """
    taken = {number: rows[number] for number in batch.rows}
    lanes = lay_out(batch, {number: row.input_ids for number, row in taken.items()}, pad_id)
    before = [lanes.starts[n][0] * batch.width + lanes.starts[n][1] + row.answer_T - 1 for n, row in taken.items()]
    return TrainingBatch(
        input_ids_BW=torch.from_numpy(lanes.input_ids_BW),
        position_ids_BW=torch.from_numpy(lanes.position_ids_BW),
        before_N=torch.from_numpy(np.concatenate(before)),
        target=_make_target(list(taken.values()), settings, lambda_),
        row_N=np.repeat(list(taken), [len(row.answer_T) for row in taken.values()]),
    )


def empty_batch(pad_id: int) -> TrainingBatch:
    """One token and no answer, for a worker that has no batch left while another one has."""
    token = torch.full((1, 1), pad_id)
    nothing = torch.zeros(0, dtype=torch.long)
    return TrainingBatch(token, torch.zeros_like(token), nothing, gold_target(nothing), np.zeros(0, dtype=np.int64))


def _make_target(rows: list[TrainingRow], settings: Targets, lambda_: float) -> SoftTarget:
    gold_N = torch.from_numpy(np.concatenate([row.input_ids[row.answer_T] for row in rows])).long()
    chosen_N = np.concatenate([row.chosen_T for row in rows])
    if (chosen_N == NO_TEACHER).all() or (lambda_ == 1.0 and not (chosen_N == ANCHORED).any()):
        return gold_target(gold_N)
    return soft_target(
        gold_N,
        torch.from_numpy(_stack([row.ids_TK for row in rows], -1)),
        torch.from_numpy(_stack([row.logprobs_TK for row in rows], -np.inf)),
        torch.from_numpy(chosen_N),
        lambda_=lambda_,
        tail=settings.tail,
        temperature=settings.temperature,
    )


def _stack(parts_TK: list[np.ndarray], fill: float) -> np.ndarray:
    widest = max(part.shape[1] for part in parts_TK)
    padded = [np.pad(part, ((0, 0), (0, widest - part.shape[1])), constant_values=fill) for part in parts_TK]
    return np.concatenate(padded)


class _Lists(NamedTuple):
    """A column of lists as one flat array, without copies."""

    offsets: np.ndarray
    values: np.ndarray

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]
        return self.values[self.offsets[row] : self.offsets[row + 1]]


class _Shard:
    """The columns of one fused shard."""

    def __init__(self, table: pa.Table) -> None:
        missing = [name for name in COLUMNS if name not in table.column_names and name not in _OPTIONAL]
        if missing:
            raise CorruptArtifactError(f"a fused shard lacks the columns {missing}; make the fused set again.")
        self.ids = [str(id_) for id_ in table["id"].to_pylist()]
        usable = table["reason"].is_null().to_pylist() if "reason" in table.column_names else [True] * len(self.ids)
        self.usable = usable
        self.n_bytes = table["n_bytes"].to_pylist() if "n_bytes" in table.column_names else [0] * len(self.ids)
        self.lists = {name: _lists_of(table[name]) for name in _LISTS if name in table.column_names}

    def length(self, row: int) -> int:
        return len(self.lists["input_ids"][row]) if self.usable[row] else 0

    def answers(self, row: int) -> np.ndarray:
        """Index of every answer token in the conversation."""
        if not self.usable[row]:
            return np.zeros(0, dtype=np.int64)
        starts, lengths = self.lists["turn_starts"][row], self.lists["turn_lengths"][row]
        turns = [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        return np.concatenate(turns) if turns else np.zeros(0, dtype=np.int64)

    def top_k(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        ids, logprobs, n = self.lists["topk_ids"][row], self.lists["topk_logprobs"][row], len(self.answers(row))
        if len(ids) != len(logprobs) or len(ids) % n or len(self.lists["chosen"][row]) != n:
            raise CorruptArtifactError(
                f"row {self.ids[row]}: {len(ids)} kept ids, {len(logprobs)} log-probabilities and "
                f"{len(self.lists['chosen'][row])} choices for {n} answer tokens; make the fused set again."
            )
        return ids.reshape(n, -1), logprobs.reshape(n, -1)

    def answer_bytes(self, row: int) -> int:
        return self.n_bytes[row] or 0


_OPTIONAL = {"reason"}
_LISTS = [name for name in COLUMNS if name not in ("id", "reason")]


def _lists_of(column: pa.ChunkedArray) -> _Lists:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    return _Lists(array.offsets.to_numpy(), array.values.to_numpy(zero_copy_only=False))


def check_rows(rows: TrainingRows, vocabulary: int, where: str) -> None:
    """Refuse rows that this model cannot be trained on.

    Raises:
        RecipeError: There is no answer token at all.
        CorruptArtifactError: A token id is outside the model's vocabulary.
    """
    if not rows.answers_N.sum():
        raise RecipeError(
            f"{where}: none of its {len(rows)} rows has an answer token within targets.max_length; expected chats "
            "with assistant turns. Check the corpus, or raise max_length."
        )
    if rows.largest_id() >= vocabulary:
        raise CorruptArtifactError(
            f"{where}: holds token id {rows.largest_id()}, but the pivot's vocabulary has {vocabulary} entries; it was "
            "fused for another pivot. Delete the fused set and run again."
        )
