"""Three kinds of tokenizer, trained from scratch: byte-level BPE, Unigram, and SentencePiece-style BPE.

They differ in what real models differ in: how a space is written, what happens to a byte that no token covers, the
special tokens, the chat template. Two write unknown bytes as `<0xNN>` tokens; the third has all bytes in its alphabet.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A space belongs to the word after it, and runs of white space stay together: indentation is one token.
_WORDS = Regex(r" ?[^\s]+|\s+(?!\S)|\s+")
# What Transformers gives every Qwen2 model, whatever its tokenizer.json says: a tokenizer trained with another rule
# would be read back as a different one.
_QWEN_WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True)
class Style:
    """The special tokens and the chat template of one tokenizer.

    Attributes:
        specials: Special tokens; each gets an id of its own and never splits.
        start: Written before the first turn, may be empty.
        user: The user's turn, with `{}` for its text.
        answer: Opens the assistant's turn; a space at its end is left to the model when it is asked to write.
        end: The token that ends an assistant's turn.
        after: Written after that token.
    """

    specials: tuple[str, ...]
    start: str
    user: str
    answer: str
    end: str
    after: str = ""

    @property
    def chat_template(self) -> str:
        """The style as a Jinja template over `messages` and `add_generation_prompt`."""
        before, _, behind = self.user.partition("{}")
        return (
            f"{{{{ {json.dumps(self.start)} }}}}"
            "{% for message in messages %}{% if message['role'] == 'assistant' %}"
            f"{{{{ {json.dumps(self.answer)} + message['content'] + {json.dumps(self.end + self.after)} }}}}"
            "{% else %}"
            f"{{{{ {json.dumps(before)} + message['content'] + {json.dumps(behind)} }}}}"
            "{% endif %}{% endfor %}"
            f"{{% if add_generation_prompt %}}{{{{ {json.dumps(self.answer.rstrip(' '))} }}}}{{% endif %}}"
        )


CHATML = Style(
    specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    start="",
    user="<|im_start|>user\n{}<|im_end|>\n",
    answer="<|im_start|>assistant\n",
    end="<|im_end|>",
    after="\n",
)
INST = Style(
    specials=("<s>", "</s>", "[INST]", "[/INST]"), start="<s>", user="[INST] {} [/INST]", answer=" ", end="</s>"
)
PROMPTER = Style(
    specials=("<|endoftext|>", "<|prompter|>", "<|assistant|>"),
    start="",
    user="<|prompter|>{}<|endoftext|>",
    answer="<|assistant|>",
    end="<|endoftext|>",
)
HEADERS = Style(
    specials=("<s>", "</s>", "<|user|>", "<|assistant|>"),
    start="<s>",
    user="<|user|>\n{}</s>\n",
    answer="<|assistant|>\n",
    end="</s>",
    after="\n",
)
STYLES = {"chatml": CHATML, "inst": INST, "prompter": PROMPTER, "headers": HEADERS}


def train_byte_bpe(texts: Iterable[str], size: int, style: Style) -> Tokenizer:
    """Byte-level BPE as GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_QWEN_WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=_added(style.specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_unigram(texts: Iterable[str], size: int, style: Style) -> Tokenizer:
    """Unigram with byte fallback, as T5 and Gemma's relatives have it; a space is `▁` and none is added in front.

    Candidates are the pieces of a larger BPE; three rounds of segmenting and counting give their probabilities. The
    trainer of the tokenizers library gives another vocabulary on every call, so it is of no use where runs must repeat.
    """
    words = _count_words(texts)
    reserved = ["<unk>", *style.specials, *_BYTES]
    candidates = Tokenizer(models.BPE())
    alphabet = _most_used_characters(words, size // 3)
    trainer = trainers.BpeTrainer(
        vocab_size=2 * size, initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False
    )
    candidates.train_from_iterator((word for word, count in words.items() for _ in range(count)), trainer)
    pieces = sorted(candidates.get_vocab())
    counts = dict.fromkeys(pieces, 1.0)
    for room in (2 * size, (2 * size + len(reserved)) // 2 + size // 4, size - len(reserved)):
        counts = _most_counted(_count_pieces(counts, words), room)
    total = math.log(sum(counts.values()))
    scores = [(piece, math.log(count) - total) for piece, count in counts.items()]
    tokenizer = _with_spaces_marked(Tokenizer(models.BPE()), prepend="never")
    tokenizer.model = models.Unigram([(piece, 0.0) for piece in reserved] + scores, unk_id=0, byte_fallback=True)
    tokenizer.add_special_tokens(_added(("<unk>", *style.specials)))
    return tokenizer


def train_sentencepiece_bpe(texts: Iterable[str], size: int, style: Style) -> Tokenizer:
    """BPE with byte fallback, as Llama 2 and Mistral have it; the first word of a text gets a space in front."""
    tokenizer = _with_spaces_marked(
        Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)), prepend="first"
    )
    reserved = ["<unk>", *style.specials, *_BYTES]
    texts = list(texts)
    alphabet = _most_used_characters(_count_words(texts), max(size // 3, 64))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=reserved,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    data = json.loads(tokenizer.to_str())
    bytes_are_ordinary = [token for token in data["added_tokens"] if token["content"] not in _BYTES]
    return Tokenizer.from_str(json.dumps(data | {"added_tokens": bytes_are_ordinary}))


TRAINERS: dict[str, Callable[[Iterable[str], int, Style], Tokenizer]] = {
    "byte_bpe": train_byte_bpe,
    "unigram": train_unigram,
    "sentencepiece_bpe": train_sentencepiece_bpe,
}


def as_hugging_face(tokenizer: Tokenizer, style: Style) -> "PreTrainedTokenizerFast":
    """Wrap a trained tokenizer with its end-of-turn token and chat template."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=style.start or None,
        eos_token=style.end,
        pad_token=style.specials[0] if style.specials[0] != style.start else style.end,
        unk_token="<unk>" if tokenizer.token_to_id("<unk>") is not None else None,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = style.chat_template
    return wrapped


def _added(tokens: Iterable[str]) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _count_words(texts: Iterable[str]) -> Counter[str]:
    split = _with_spaces_marked(Tokenizer(models.BPE()), prepend="never").pre_tokenizer
    return Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))


def _most_used_characters(words: Counter[str], room: int) -> list[str]:
    """The alphabet of a vocabulary: with ties broken here, for the trainer breaks them differently on every call."""
    used: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            used[character] += count
    return sorted(used, key=lambda character: (-used[character], character))[:room]


def _count_pieces(counts: dict[str, float], words: Counter[str]) -> Counter[str]:
    """How often each piece is used when every word is cut into its most probable pieces."""
    total = math.log(sum(counts.values()))
    model = Tokenizer(models.Unigram([("<unk>", -99.0)] + [(p, math.log(c) - total) for p, c in counts.items()], 0))
    used: Counter[str] = Counter(dict.fromkeys(counts, 0))
    for (_, count), cut in zip(words.items(), model.encode_batch(list(words)), strict=True):
        used.update({piece: repeats * count for piece, repeats in Counter(cut.tokens).items() if piece in counts})
    return used


def _most_counted(used: Counter[str], room: int) -> dict[str, float]:
    """Single characters, then the pieces used most; half is added to each count, so that none is 0."""
    ranked = sorted(used, key=lambda piece: (len(piece) > 1, -used[piece], piece))
    return {piece: used[piece] + 0.5 for piece in ranked[:room]}


def _with_spaces_marked(tokenizer: Tokenizer, prepend: str) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_WORDS, "isolated"), pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)]
    )
    strip = [decoders.Strip(" ", 1, 0)] if prepend == "first" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer
