"""Held-out prompts for sample answers: which ones, and what a model reads of them."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fusion_ray.report.heldout import HeldOut, domain_label


class Prompt(NamedTuple):
    """A held-out document up to its last answer.

    Attributes:
        id: Of the document.
        domain: Its label in the report.
        messages: What comes before the answer.
        gold: The answer of the corpus.
        input_ids: The prompt in the pivot's tokens.
        end_id: The token that ends the answer; None where it was cut.
    """

    id: str
    domain: str
    messages: list[dict[str, str]]
    gold: str
    input_ids: np.ndarray
    end_id: int | None


def pick_documents(heldout: HeldOut, count: int, seed: int) -> list[str]:
    """Ids of a few documents, the domains in turn, at random within each."""
    order = np.random.default_rng(seed).permutation(len(heldout.ids))
    by_domain: dict[str, list[str]] = {}
    for index in order:
        by_domain.setdefault(str(heldout.scores.domains_N[index]), []).append(heldout.ids[index])
    picked: list[str] = []
    for rank in range(max(map(len, by_domain.values()), default=0)):
        picked += [by_domain[domain][rank] for domain in sorted(by_domain) if rank < len(by_domain[domain])]
    return picked[:count]


def make_prompt(chats: pa.Table, rendered: pa.Table, row: int) -> Prompt:
    """The prompt of one row: everything before its last answer; of plain text, its first half.

    Args:
        chats: The corpus shard.
        rendered: The same rows as the pivot reads them.
        row: A row that the pivot has scored.
    """
    chat, read = chats.slice(row, 1).to_pylist()[0], rendered.slice(row, 1).to_pylist()[0]
    ids = np.asarray(read["input_ids"], dtype=np.int64)
    turn = max(index for index, length in enumerate(read["turn_lengths"]) if length)
    start, length = read["turn_starts"][turn], read["turn_lengths"][turn]
    end_id = int(ids[start + length - 1]) if read["turn_ended"][turn] else None
    messages: list[dict[str, str]] = chat["messages"]
    if messages[0]["role"] == "text":
        text = messages[0]["content"]
        middle = start + length // 2
        byte = read["boundaries"][length // 2 - 1] if length > 1 else 0
        raw = text.encode()
        shown = [{"role": "text", "content": raw[:byte].decode(errors="ignore")}]
        return Prompt(
            chat["id"], domain_label(chat["domain"]), shown, raw[byte:].decode(errors="ignore"), ids[:middle], end_id
        )
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    at = answers[turn]
    return Prompt(
        chat["id"], domain_label(chat["domain"]), messages[:at], messages[at]["content"], ids[:start], end_id
    )  # fmt: skip


def describe_samples(prompts: list[Prompt], answers: dict[str, list[str]], heldout: HeldOut) -> list[dict[str, Any]]:
    """The samples as the report keeps them: prompt, gold answer, and every model's answer and bits per byte."""
    scores = heldout.scores
    rows = {identity: row for row, identity in enumerate(heldout.ids)}
    samples = []
    for index, prompt in enumerate(prompts):
        row = rows[prompt.id]
        rates = scores.nll_MN[:, row] / np.log(2.0) / scores.bytes_N[row]
        samples.append(
            {
                "id": prompt.id,
                "domain": prompt.domain,
                "messages": prompt.messages,
                "gold": prompt.gold,
                "answers": {model: texts[index] for model, texts in answers.items()},
                "bits_per_byte": {m: float(r) for m, r in zip(scores.models, rates, strict=True)},
            }
        )
    return samples
