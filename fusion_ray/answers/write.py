"""Let a source answer the chats that it knows best anew."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fusion_ray.chat import Template
from fusion_ray.chat.prompts import STAND_IN, make_prompts
from fusion_ray.models.generator import Generator
from fusion_ray.recipe import Answers

_HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_STAND_IN = {"role": "assistant", "content": STAND_IN}


def answer_anew(
    chats: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    template: Template,
    generator: Generator,
    settings: Answers,
    seed: int,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Give one answer of every chat anew, drawn from the model's distributions after what came before it.

    The seed and the chat alone decide which of the chat's answers is given anew, and what is drawn.

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
    prompts = make_prompts([[*want.before, _STAND_IN] for want in wanted], tokenizer, template, generator.max_length)
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
        # An answer that was broken off may end within a character.
        content = text.strip() if ended else text.rstrip(_HALF_A_CHARACTER).strip()
        if not content:
            counts["empty"] += 1
            continue
        counts["unfinished"] += not ended
        if ended or settings.unfinished == "keep":
            messages = [*want.before, {"role": "assistant", "content": content}]
            rows.append({"id": want.id, "domain": want.domain, "messages": messages, "reason": None, "ended": ended})
    return rows, counts


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
