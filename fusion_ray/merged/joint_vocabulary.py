"""One vocabulary for models that have different ones: a tokenizer for the output, and embeddings in its order.

Every model gets an embedding for every token, as in mergekit. A token that the model lacks has the base's embedding. If
the base lacks it too, it has the mean of the embeddings in the models that know it; if none does, zeros. Rows beyond
the vocabulary (`pad_to_multiple_of`) hold the mean of all others. Each model's new embeddings are written, in float32,
to a working file, which the merge then reads like any other.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fusion_ray.errors import RecipeError
from fusion_ray.merged.mergekit_config import MergekitConfig, Tokenizer, one_model
from fusion_ray.merged.plan import describe_file, merged_names
from fusion_ray.storage.checkpoint_writer import CheckpointWriter, Slot
from fusion_ray.storage.checkpoints import Checkpoint, StoredTensor, TensorReader, read_header
from fusion_ray.storage.filesystem import exists, join, local_path

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "lm_head.weight",
               "embed_out.weight")  # fmt: skip
_BLOCK_ROWS = 4096


class Row(NamedTuple):
    """A row of one model's embedding."""

    model: str
    row: int


@dataclass(frozen=True)
class JointVocabulary:
    """The vocabulary of the output.

    Attributes:
        tokenizer: A Transformers tokenizer.
        size: Rows of the output's embeddings.
        tensors: By model and name, the embeddings in the order of its ids.
    """

    tokenizer: Any
    size: int
    tensors: Mapping[str, Mapping[str, StoredTensor]]

    @property
    def config_changes(self) -> dict[str, int]:
        """Keys of config.json that follow from it."""
        return {"vocab_size": self.size}

    def save_tokenizer(self, folder: str) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(str(local_path(folder)))


def build_vocabulary(config: MergekitConfig, checkpoints: Mapping[str, Checkpoint], work: str) -> JointVocabulary:
    """Choose the output's tokenizer, and write every model's embeddings in the order of its ids.

    Args:
        config: The merge config.
        checkpoints: Its models, the base (or the first) first.
        work: Folder for these embeddings.

    Raises:
        RecipeError: A tokenizer cannot be read, or a token's source is not there.
    """
    settings = config.tokenizer or Tokenizer(source=str(config.tokenizer_source))
    tokenizers = {name: _load(checkpoint.folder) for name, checkpoint in checkpoints.items()}
    tokenizer = _choose(settings, tokenizers, checkpoints)
    vocabulary = tokenizer.get_vocab()
    size = used = max(vocabulary.values(), default=0) + 1  # More than there are tokens, where ids are left out.
    if settings.pad_to_multiple_of:
        size = -(-size // settings.pad_to_multiple_of) * settings.pad_to_multiple_of
    own_rows = {name: _own_rows(vocabulary, tokenizers[name], checkpoint) for name, checkpoint in checkpoints.items()}
    fallbacks, forced = _fallbacks(settings, vocabulary, own_rows, tokenizers, config.base_model)
    layout = _Layout(size, used, own_rows, fallbacks, forced)
    return JointVocabulary(tokenizer, size, {name: layout.write(name, checkpoints, work) for name in checkpoints})


def _load(folder: str) -> Any:
    from transformers import AutoTokenizer  # Takes seconds, and only configs that ask for a tokenizer need it.

    try:
        return AutoTokenizer.from_pretrained(str(local_path(folder)))
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"{folder}: its tokenizer cannot be read ({error}).") from error


def _choose(settings: Tokenizer, tokenizers: Mapping[str, Any], checkpoints: Mapping[str, Checkpoint]) -> Any:
    first = next(iter(tokenizers))
    if settings.source == "union":
        tokenizer = _union(tokenizers, checkpoints)
    elif settings.source == "base":
        tokenizer = _load(checkpoints[first].folder)
    elif settings.source in checkpoints:
        tokenizer = _load(checkpoints[settings.source].folder)
    else:
        raise RecipeError(
            f"tokenizer source '{settings.source}': expected union, base or one of the models {list(tokenizers)}."
        )
    tokenizer.add_tokens([token for token in settings.tokens if token not in tokenizer.get_vocab()])
    return tokenizer


def _union(tokenizers: Mapping[str, Any], checkpoints: Mapping[str, Checkpoint]) -> Any:
    """The first tokenizer with the tokens of all others added, model by model in order of their ids."""
    names = list(tokenizers)
    union = _load(checkpoints[names[0]].folder)
    known = set(union.get_vocab())
    for name in names[1:]:
        added = {token.content: token for token in tokenizers[name].added_tokens_decoder.values()}
        rows = _rows(checkpoints[name])
        new = [
            added.get(token, token)
            for token, number in sorted(tokenizers[name].get_vocab().items(), key=lambda item: item[1])
            if token not in known and number < rows
        ]
        union.add_tokens(new)
        known |= set(map(str, new))
    return union


def _rows(checkpoint: Checkpoint) -> int:
    """Number of rows of the embeddings; a token with a higher id has no embedding."""
    sizes = [checkpoint.tensors[name].shape[0] for name in merged_names(checkpoint) if name.endswith(_EMBEDDINGS)]
    return min(sizes, default=0)


def _own_rows(vocabulary: Mapping[str, int], tokenizer: Any, checkpoint: Checkpoint) -> dict[int, int]:
    """By id in the output, the row in a model's embedding, for the tokens that the model has."""
    rows = _rows(checkpoint)
    own = tokenizer.get_vocab()
    return {number: own[token] for token, number in vocabulary.items() if own.get(token, rows) < rows}


def _fallbacks(
    settings: Tokenizer,
    vocabulary: Mapping[str, int],
    own_rows: Mapping[str, Mapping[int, int]],
    tokenizers: Mapping[str, Any],
    base: str | None,
) -> tuple[dict[int, list[Row]], set[int]]:
    """By id, the rows whose mean a model that lacks the token takes; and the ids for which every model takes it."""
    found: dict[int, list[Row]] = {}
    forced = set()
    for token, number in vocabulary.items():
        holders = [Row(name, rows[number]) for name, rows in own_rows.items() if number in rows]
        if token in settings.tokens:
            found[number] = _configured(token, settings.tokens[token], holders, tokenizers)
            if settings.tokens[token].get("force"):
                forced.add(number)
        elif len(holders) < len(own_rows):
            of_base = [holder for holder in holders if holder.model == base]
            found[number] = of_base if of_base and len(holders) > 1 else holders
    return found, forced


def _configured(token: str, setting: Any, holders: list[Row], tokenizers: Mapping[str, Any]) -> list[Row]:
    """The rows that the config names for a token: none for zeros, one of a model, or those of all that have it."""
    if not isinstance(setting, dict) or not setting.keys() <= {"source", "force"}:
        raise RecipeError(f"tokenizer.tokens.{token}: expected {{source: ..., force: ...}}, got {setting!r}.")
    source = setting.get("source")
    if source is None:
        return holders
    if isinstance(source, dict) and source.get("kind") == "zero":
        return []
    if isinstance(source, dict) and source.get("kind") == "model_token":
        model = one_model(source.get("model"))
        if model in tokenizers:
            row = source.get("token_id", tokenizers[model].get_vocab().get(source.get("token")))
            if isinstance(row, int):
                return [Row(model, row)]
        raise RecipeError(f"tokenizer.tokens.{token}: the source {source} names no token of a model of this merge.")
    chosen = [holder for holder in holders if holder.model == one_model(source)]
    if not chosen:
        raise RecipeError(f"tokenizer.tokens.{token}: the model {source!r} does not have this token.")
    return chosen


class _Layout(NamedTuple):
    """Which rows make the embeddings of the output's vocabulary.

    Attributes:
        size: Rows of the output's embeddings.
        used: Rows up to the last token's; those after it are padding.
        own_rows: By model and id in the output, the row in the model's embedding.
        fallbacks: By id, the rows whose mean a model that lacks the token takes.
        forced: Ids for which every model takes that mean.
    """

    size: int
    used: int
    own_rows: Mapping[str, Mapping[int, int]]
    fallbacks: Mapping[int, Sequence[Row]]
    forced: set[int]

    def write(self, model: str, checkpoints: Mapping[str, Checkpoint], work: str) -> dict[str, StoredTensor]:
        """Write a model's embeddings in the order of the output's ids, unless that was done before, and open them."""
        names = [name for name in merged_names(checkpoints[model]) if name.endswith(_EMBEDDINGS)]
        if not names:
            return {}
        uri = join(work, f"{model.strip('/').replace('/', '_')}-{self._digest(model, checkpoints)}.safetensors")
        if not exists(uri):
            columns = {name: checkpoints[model].tensors[name].shape[1:] for name in names}
            slots = [Slot(name, "F32", (self.size, *columns[name])) for name in names]
            with CheckpointWriter(uri, slots) as writer, TensorReader() as reader:
                for name in names:
                    tensors = {other: checkpoint.tensors.get(name) for other, checkpoint in checkpoints.items()}
                    for rows_RC in self._blocks(model, tensors, reader):
                        writer.write(rows_RC.reshape(-1))
        return read_header(uri)

    def _digest(self, model: str, checkpoints: Mapping[str, Checkpoint]) -> str:
        uris = sorted({tensor.uri for checkpoint in checkpoints.values() for tensor in checkpoint.tensors.values()})
        described = [model, self.size, self.used, {name: sorted(rows.items()) for name, rows in self.own_rows.items()}]
        text = json.dumps(
            [described, sorted(self.fallbacks.items()), sorted(self.forced), [describe_file(u) for u in uris]]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _blocks(
        self, model: str, tensors: Mapping[str, StoredTensor | None], reader: TensorReader
    ) -> Iterator[np.ndarray]:
        """The rows of one model's new embedding, block by block."""
        own = np.full(self.size, -1, dtype=np.int64)
        own[list(self.own_rows[model])] = list(self.own_rows[model].values())
        own[list(self.forced)] = -1
        total: np.ndarray | float = 0.0
        for start in range(0, self.size, _BLOCK_ROWS):
            stop = min(self.size, start + _BLOCK_ROWS)
            rows_RC = _read_rows(reader, _there(tensors, model), own[start:stop])
            for number in range(start, min(stop, self.used)):
                if own[number] < 0:
                    holders = self.fallbacks.get(number, [])
                    rows_RC[number - start] = _mean_row(reader, tensors, holders, rows_RC.shape[1])
            total = total + rows_RC[: max(0, self.used - start)].sum(axis=0, dtype=np.float64)
            if stop > self.used:
                rows_RC[max(0, self.used - start) :] = total / self.used
            yield rows_RC


def _there(tensors: Mapping[str, StoredTensor | None], model: str) -> StoredTensor:
    tensor = tensors[model]
    if tensor is None:
        raise RecipeError(f"{model}: lacks an embedding that another model has, so the vocabularies cannot be joined.")
    return tensor


def _mean_row(
    reader: TensorReader, tensors: Mapping[str, StoredTensor | None], rows: Sequence[Row], columns: int
) -> np.ndarray:
    found = [_read_rows(reader, _there(tensors, row.model), np.array([row.row]))[0] for row in rows]
    return np.asarray(np.mean(found, axis=0, dtype=np.float64)) if found else np.zeros(columns)


def _read_rows(reader: TensorReader, tensor: StoredTensor, rows_R: np.ndarray) -> np.ndarray:
    """Rows of a tensor in any order, float32 [R, C]; zeros where a row is -1. Neighbours are read at once."""
    columns = tensor.shape[1]
    found_RC = np.zeros((len(rows_R), columns), dtype=np.float32)
    breaks = np.flatnonzero(np.diff(rows_R) != 1) + 1
    for run in np.split(np.arange(len(rows_R)), breaks):
        if rows_R[run[0]] < 0:  # A -1 stands alone, or before row 0, which follows it by one.
            run = run[1:]
        if len(run):
            reader.read_into(tensor, int(rows_R[run[0]]) * columns, found_RC[run[0] : run[-1] + 1].reshape(-1))
    return found_RC
