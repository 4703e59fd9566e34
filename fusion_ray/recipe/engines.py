"""Which engine scores or writes, in a recipe: `engine` of a model or of the section `distributions`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from fusion_ray.recipe.section import PLACEMENT, Section, choice_of

Dtype = Literal["float32", "bfloat16", "float16"]


class TransformersEngine(Section):
    """Score with Hugging Face Transformers: runs everywhere, any architecture."""

    kind: Literal["transformers"] = "transformers"
    dtype: Dtype | Literal["auto"] = "auto"
    tokens_per_batch: int = Field(8192, ge=1)
    attention: str | None = None


class VllmEngine(Section):
    """Score with vLLM, the production engine."""

    kind: Literal["vllm"] = "vllm"
    dtype: Dtype | Literal["auto"] = "auto"
    tensor_parallel: int = Field(1, ge=1)
    gpu_memory_share: float = Field(0.85, gt=0, le=1)
    tokens_per_batch: int = Field(2048, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)


class OpenAIEngine(Section):
    """Score through a running OpenAI-compatible server that returns prompt log-probabilities."""

    kind: Literal["openai"] = "openai"
    base_url: str
    served_model: str | None = None
    concurrency: Annotated[int, PLACEMENT] = Field(16, ge=1)
    timeout_s: Annotated[float, PLACEMENT] = Field(120, gt=0)
    retries: Annotated[int, PLACEMENT] = Field(5, ge=0)


Engine = Annotated[
    Annotated[TransformersEngine | VllmEngine | OpenAIEngine, Field(discriminator="kind")], choice_of("transformers")
]
