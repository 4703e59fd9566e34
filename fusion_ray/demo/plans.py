"""What the demo makes: how many chats, and the shape and training of each model, in two sizes."""

from dataclasses import dataclass, field
from typing import Any

from fusion_ray.demo.chats import Texts


@dataclass(frozen=True)
class ModelPlan:
    """One model of the demo: its shape, its tokenizer, what it learns from and for how long.

    Attributes:
        architecture: A Transformers model type.
        vocabulary: Kind of tokenizer, a key of `vocabularies.TRAINERS`.
        style: Chat template, a key of `vocabularies.STYLES`.
        domains: Domains whose chats it is trained on.
        tokens: Tokens it sees in training, padding not counted.
        vocabulary_domains: Domains whose chats its tokenizer is made from; its own where none is given.
    """

    name: str
    architecture: str
    vocabulary: str
    style: str
    domains: tuple[str, ...]
    tokens: int
    vocabulary_size: int = 2048
    hidden_size: int = 128
    layers: int = 3
    head_dim: int = 32
    max_length: int = 256
    learning_rate: float = 3e-3
    tokens_per_step: int = 768
    seed: int = 0
    vocabulary_domains: tuple[str, ...] = ()


@dataclass(frozen=True)
class DemoPlan:
    """A whole demo.

    Attributes:
        fusion_chats: Chats of each domain that go to the fusion corpus.
        training_chats: At most so many of the others, of each domain, train the models.
        models: The specialists and the pivot.
        texts: Where the chats come from.
        apart: Whether each model is trained in a process of its own, as many side by side as there are cores.
    """

    fusion_chats: int
    training_chats: int
    models: tuple[ModelPlan, ...]
    texts: Texts = field(default_factory=Texts)
    apart: bool = True


DOMAINS = ("code", "reference", "conversation")

DEMO = DemoPlan(
    fusion_chats=400,
    training_chats=10_000,
    models=(
        ModelPlan("code", "qwen2", "byte_bpe", "chatml", ("code",), 500_000, learning_rate=4e-3),
        ModelPlan("reference", "gpt_neox", "unigram", "prompter", ("reference",), 500_000),
        ModelPlan("conversation", "llama", "sentencepiece_bpe", "inst", ("conversation",), 500_000),
        ModelPlan(
            "pivot", "llama", "byte_bpe", "headers", DOMAINS, 200_000,
            vocabulary_size=1536, hidden_size=96, layers=2, tokens_per_step=1024,
        ),
    ),
)  # fmt: skip

_TINY: dict[str, Any] = {
    "vocabulary_size": 512,
    "hidden_size": 64,
    "layers": 2,
    "max_length": 128,
    "tokens_per_step": 512,
}
TINY = DemoPlan(
    fusion_chats=20,
    training_chats=120,
    models=(
        ModelPlan("code", "qwen2", "byte_bpe", "chatml", ("code",), 20_000, **_TINY),
        ModelPlan("reference", "gpt_neox", "unigram", "prompter", ("reference",), 20_000, **_TINY),
        ModelPlan("conversation", "llama", "sentencepiece_bpe", "inst", ("conversation",), 20_000, **_TINY),
        ModelPlan("pivot", "llama", "byte_bpe", "headers", DOMAINS, 10_000, **_TINY),
    ),
    texts=Texts(
        code="[a-f]*.py", packages=("jinja2", "rich"), languages=("english", "italian"), answer_bytes=(24, 120)
    ),
    apart=False,
)

PLANS = {"demo": DEMO, "tiny": TINY}
