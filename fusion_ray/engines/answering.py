"""Let one model answer: a judge's questions turn by turn, or the chats that it knows best anew.

Each question is read as the model reads chats when it is scored.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusion_ray.algorithms.chat import Template, render_all
from fusion_ray.algorithms.chat.rendered import Rendered
from fusion_ray.algorithms.fuse.choose import has_score, pick_mince
from fusion_ray.engines.generator import Generator
from fusion_ray.engines.scoring import flat_values
from fusion_ray.errors import FusionRayError
from fusion_ray.recipe import Answers
from fusion_ray.storage.questions import Question

# Stands where the answer will: a template is only asked for whole conversations.
_PLACE = "x"


def answer_questions(
    questions: Sequence[Question], tokenizer: Any, template: Template, generator: Generator, max_tokens: int
) -> list[dict[str, Any]]:
    """Answer all questions, greedily; a second turn is asked after the model's own first answer.

    Args:
        questions: What to ask.
        tokenizer: The model's fast tokenizer.
        template: How the model reads chats.
        generator: The model.
        max_tokens: Of one answer.

    Returns:
        For each question its `question_id`, the answers `turns`, and the `reason` why there are fewer of them than
        questions, else None.
    """
    made: list[dict[str, Any]] = [{"question_id": question.id, "turns": [], "reason": None} for question in questions]
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [n for n, q in enumerate(questions) if turn < len(q.turns) and made[n]["reason"] is None]
        chats = [_conversation(questions[n], made[n]["turns"]) for n in asked]
        prompts: dict[int, np.ndarray] = {}
        ends: set[int] = set()
        for n, prompt in zip(asked, _prompts(chats, tokenizer, template, generator.max_length), strict=True):
            made[n]["reason"] = prompt.reason
            if prompt.reason is None:
                prompts[n] = prompt.input_ids
                ends |= prompt.ends
        texts = generator.generate(list(prompts.values()), max_tokens=max_tokens, end_ids=sorted(ends))
        for n, text in zip(prompts, texts, strict=True):
            made[n]["turns"].append(text.strip())
    return made


def _conversation(question: Question, answers: Sequence[str]) -> list[dict[str, str]]:
    messages = []
    for user, answer in zip(question.turns, [*answers, _PLACE], strict=False):
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return messages


class _Prompt(NamedTuple):
    """What a model reads before it answers, the token that ends its answers, and why it cannot be asked."""

    input_ids: np.ndarray
    ends: set[int]
    reason: str | None


def _prompts(
    chats: Sequence[list[dict[str, str]]], tokenizer: Any, template: Template, max_length: int | None
) -> list[_Prompt]:
    """Chats that end with a stand-in for the answer, as the model reads them before it."""
    nothing = np.zeros(0, dtype=np.int32)
    prompts = []
    for rendered in render_all(tokenizer, chats, template):
        reason = _why_not(rendered, max_length)
        if reason is None and isinstance(rendered, Rendered):
            last = rendered.turns[-1]
            ends = {int(rendered.input_ids[last.stop - 1])} if last.ended else set()
            prompts.append(_Prompt(rendered.input_ids[: last.start], ends, None))
        else:
            prompts.append(_Prompt(nothing, set(), reason))
    return prompts


def _why_not(rendered: Rendered | FusionRayError, max_length: int | None) -> str | None:
    """Why the model cannot be asked, None where it can."""
    if isinstance(rendered, FusionRayError):
        return str(rendered)
    start = rendered.turns[-1].start
    if max_length is not None and start >= max_length:
        return f"the question has {start} tokens, and the model reads at most {max_length} with the answer"
    return None


# --- the corpus, answered anew -----------------------------------------------------------------------------------


def best_known(scored: Mapping[str, pa.Table], source: str) -> np.ndarray:
    """Rows whose answer a source fits best, in bits per byte, int64; a tie goes to the model that comes first.

    Args:
        scored: The same shard's distributions by model, the pivot's first; n_bytes, real_logprobs and reason are read.
        source: One of the models.
    """
    scores_MN = np.array([_bits_per_byte(table) for table in scored.values()], dtype=np.float32)
    known_N = has_score(scores_MN)
    best_N = pick_mince(np.where(known_N, scores_MN, 0.0))
    return np.flatnonzero(known_N & (best_N == list(scored).index(source)))


def _bits_per_byte(table: pa.Table) -> np.ndarray:
    lengths_N = pc.fill_null(pc.list_value_length(table["real_logprobs"]), 0).to_numpy()
    row_T = np.repeat(np.arange(len(table)), lengths_N)
    nll_N = -np.bincount(row_T, flat_values(table, "real_logprobs", np.float64), len(table))
    n_bytes_N = pc.fill_null(table["n_bytes"], 0).to_numpy()
    usable_N = table["reason"].is_null().to_numpy() & (n_bytes_N > 0)
    return np.divide(nll_N, n_bytes_N * np.log(2.0), out=np.full(len(table), np.nan), where=usable_N)


def answer_anew(
    chats: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    template: Template,
    generator: Generator,
    settings: Answers,
    seed: int,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Give one answer of every chat anew, drawn from the model's distributions after what came before it.

    Which of a chat's answers, and what is drawn, depends on the seed and the chat alone.

    Args:
        chats: Each with `id`, `domain` and `messages`; plain text has no answer to a question and is left out.
        tokenizer: The model's fast tokenizer.
        template: How the model reads chats.
        generator: The model.
        settings: The recipe's answers section.
        seed: The recipe's.

    Returns:
        The new chats, which end with the new answer, as rows of ANSWERS_SCHEMA; and how many answers were `asked`, were
        `unfinished` within max_tokens (kept if the settings say so), and were not kept because they were `empty` or
        could not be asked (`unaskable`).
    """
    wanted = [_Wanted(chat, sample, seed) for chat in chats for sample in range(settings.per_chat)]
    wanted = [want for want in wanted if want.before]
    prompts = _prompts([[*want.before, _STAND_IN] for want in wanted], tokenizer, template, generator.max_length)
    asked = [(want, prompt) for want, prompt in zip(wanted, prompts, strict=True) if prompt.reason is None]
    written = (
        []
        if not asked
        else generator.sample(
            [prompt.input_ids for _, prompt in asked],
            max_tokens=settings.max_tokens,
            end_ids=sorted(set().union(*(prompt.ends for _, prompt in asked))),
            temperature=settings.temperature,
            seeds=[want.seed for want, _ in asked],
        )
    )
    counts = Counter(asked=len(wanted), unaskable=len(wanted) - len(asked), unfinished=0, empty=0)
    rows = []
    for (want, _), (text, ended) in zip(asked, written, strict=True):
        # What is broken off may end within a character.
        content = text.strip() if ended else text.rstrip(_HALF_A_CHARACTER).strip()
        if not content:
            counts["empty"] += 1
            continue
        counts["unfinished"] += not ended
        if ended or settings.unfinished == "keep":
            messages = [*want.before, {"role": "assistant", "content": content}]
            rows.append({"id": want.id, "domain": want.domain, "messages": messages, "reason": None, "ended": ended})
    return rows, counts


_HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_STAND_IN = {"role": "assistant", "content": _PLACE}


class _Wanted:
    """One answer to be given anew.

    Attributes:
        id: Of the new chat.
        seed: For drawing the answer.
        before: The messages up to it; none where the chat asks nothing.
    """

    def __init__(self, chat: Mapping[str, Any], sample: int, seed: int) -> None:
        self.id = f"{chat['id']}#{sample}"
        self.domain = chat["domain"]
        digest = hashlib.sha256(f"answers:{seed}:{self.id}".encode()).digest()
        self.seed = int.from_bytes(digest[:4], "little") >> 1
        messages = chat["messages"]
        answers = [n for n, message in enumerate(messages) if message["role"] == "assistant" and n]
        place = answers[int.from_bytes(digest[4:8], "little") % len(answers)] if answers else 0
        self.before: list[dict[str, str]] = list(messages[:place])
