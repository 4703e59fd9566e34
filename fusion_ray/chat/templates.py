"""How a conversation is written as text: a model's own chat template, none, a built-in, or the pivot's."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import jinja2

from fusion_ray.chat.vocabulary import control_tokens, read_vocabulary
from fusion_ray.errors import AlignmentError, RecipeError

Messages = Sequence[Mapping[str, Any]]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

BUILT_IN = {
    "chatml": (
        "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content }}{{ end_of_turn }}\n{% endfor %}"
    ),
    "plain": (
        "{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}: "
        "{{ message.content }}{{ end_of_turn if message.role == 'assistant' }}\n\n{% endfor %}"
    ),
}

# A template that prints today's date would give other tokens tomorrow, and shards must not depend on the day.
_TODAY = datetime.date(2024, 7, 26)


@dataclass(frozen=True)
class Template:
    """A way to write conversations.

    Attributes:
        kind: `native` is the tokenizer's own; `none` is text without turns; `jinja` is `source`.
        source: Jinja template over `messages`, `bos_token`, `eos_token` and `end_of_turn`.
        end_of_turn: What `source` itself writes after a turn; replaced by the reader's own end-of-turn token.
    """

    kind: Literal["native", "none", "jinja"]
    source: str | None = None
    end_of_turn: str | None = None


def choose_template(setting: str, tokenizer: Any, pivot: Any = None) -> Template:
    """The template that a recipe's `template` setting means for this tokenizer.

    Args:
        setting: `native`, `none`, `pivot`, a built-in's name, or a Jinja source.
        tokenizer: The model's Hugging Face fast tokenizer.
        pivot: The pivot's tokenizer; needed for `pivot`.

    Raises:
        RecipeError: The setting is unknown, or `native` and the tokenizer has no chat template.
    """
    if setting == "native":
        if not tokenizer.chat_template:
            raise RecipeError(
                f"{tokenizer.name_or_path or 'tokenizer'}: it has no chat template, and template is 'native'. Set "
                f"template to pivot, none, {', '.join(BUILT_IN)}, or add chat_template.jinja to the model folder."
            )
        return Template("native")
    if setting == "none":
        return Template("none")
    if setting in BUILT_IN:
        return Template("jinja", BUILT_IN[setting])
    if setting == "pivot" and pivot is not None:
        return pivot_template(pivot)
    if "{{" in setting or "{%" in setting:
        return Template("jinja", setting)
    known = ", ".join(["native", "none", "pivot", *BUILT_IN])
    raise RecipeError(f"template: '{setting}' is not known; expected one of {known}, or a Jinja source.")


def pivot_template(pivot: Any) -> Template:
    """The pivot's chat template, for others to read with their own end-of-turn token (as FuseChat did)."""
    choose_template("native", pivot)
    return Template("jinja", pivot.get_chat_template(), own_end_of_turn(pivot))


def write_text(tokenizer: Any, messages: Messages, template: Template) -> str:
    """Write messages as the text that the model reads.

    Raises:
        AlignmentError: The template refuses the messages (unknown role, wrong order, a role it does not have).
    """
    variables: dict[str, Any] = {
        "bos_token": tokenizer.bos_token or "",
        "eos_token": tokenizer.eos_token or "",
        "date_string": _TODAY.strftime("%d %b %Y"),
        "strftime_now": _TODAY.strftime,
    }
    source = None
    if template.kind == "jinja":
        source = template.source or ""
        own = variables["end_of_turn"] = own_end_of_turn(tokenizer, source)
        if template.end_of_turn:
            source = source.replace(template.end_of_turn, own)
            variables["eos_token"] = own
    try:
        text = str(tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **variables))
        return _missing_bos(tokenizer, text, source) + text
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise AlignmentError(f"the chat template refuses a conversation of roles {roles}: {error}") from error


def _missing_bos(tokenizer: Any, text: str, source: str | None) -> str:
    """The BOS token where a foreign template leaves it out, though the model has always seen one; else nothing."""
    bos = tokenizer.bos_token
    if source is None or not bos or text.startswith(bos) or tokenizer.chat_template == source:
        return ""
    return bos if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else ""


class Ending(NamedTuple):
    """How the answers of a conversation end in one model's tokens.

    Attributes:
        ids: The last token of an ending where a turn follows, and, if it is another, at the end of the conversation
            (gpt-oss: `<|end|>` and `<|return|>`).
        first_ids: The first tokens of these endings.
        length: Control tokens of an ending; Cohere2 writes two.
        text: What is written, between turns.
        is_written_last: The template ends the last answer, too. Where it does not (GLM ends an answer with the
            `<|user|>` that follows), the ending has to be added.
    """

    ids: tuple[int, ...] = ()
    first_ids: frozenset[int] = frozenset()
    length: int = 1
    text: str = ""
    is_written_last: bool = True


_MARK = "Zq7answerZq7"
_ENDINGS: WeakKeyDictionary[Any, dict[Template, Ending]] = WeakKeyDictionary()


def find_ending(tokenizer: Any, template: Template) -> Ending:
    """What stands between an answer and the next turn, and between the last answer and the end.

    The control tokens (added to the vocabulary, special or not) that directly follow an answer are an ending as far as
    both places have them in common, and the first one where they differ. Looked up once for each template.
    """
    known = _ENDINGS.setdefault(tokenizer, {})
    if template not in known:
        known[template] = _find_ending(tokenizer, template)
    return known[template]


def _find_ending(tokenizer: Any, template: Template) -> Ending:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    try:
        last = _control_after(tokenizer, write_text(tokenizer, turns, template).partition(_MARK)[2])
    except AlignmentError:
        return Ending()
    try:
        parts = write_text(tokenizer, turns * 2, template).split(_MARK)
    except AlignmentError:  # a template of one question and one answer
        parts = []
    between = _control_after(tokenizer, parts[1]) if len(parts) == 3 else last
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(between, last, strict=False))
    length = max(1, len(list(alike)))
    endings = [run[:length] for run in (between, last) if run]
    if not endings:
        return Ending()
    vocabulary = read_vocabulary(tokenizer)
    return Ending(
        ids=tuple(dict.fromkeys(run[-1] for run in endings)),
        first_ids=frozenset(run[0] for run in endings),
        length=length,
        text=b"".join(vocabulary.token(token_id) for token_id in endings[0]).decode(),
        is_written_last=bool(last),
    )


def _control_after(tokenizer: Any, text: str) -> list[int]:
    """The control tokens that a text begins with, whitespace between them apart, up to a BOS."""
    added = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.content}
    if tokenizer.bos_token_id != tokenizer.eos_token_id:
        added.pop(tokenizer.bos_token, None)
    longest_first = sorted(added, key=len, reverse=True)
    found: list[int] = []
    while token := next((token for token in longest_first if text.lstrip().startswith(token)), None):
        found.append(added[token])
        text = text.lstrip()[len(token) :]
    return found


def end_tokens(tokenizer: Any) -> list[int]:
    """Every token with which this model may end a turn, the usual one first: its own template's, then EOS."""
    own = find_ending(tokenizer, Template("native")).ids if tokenizer.chat_template else ()
    eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return list(dict.fromkeys([*own, *eos]))


def own_end_of_turn(tokenizer: Any, source: str | None = None) -> str:
    """How this model's answers end, as text: what its own template writes, else its EOS.

    Args:
        tokenizer: The reader's.
        source: The template to be filled; where it is ChatML and the tokenizer knows `<|im_end|>`, that is it.
    """
    if tokenizer.chat_template:
        return find_ending(tokenizer, Template("native")).text or str(tokenizer.eos_token or "")
    if source and "<|im_start|>" in source and "<|im_end|>" in control_tokens(tokenizer).texts:
        return "<|im_end|>"
    return str(tokenizer.eos_token or "")
