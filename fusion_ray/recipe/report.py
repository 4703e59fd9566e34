"""The recipe's sections for what the report may ask of others: a judge, and benchmarks of lm-evaluation-harness."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fusion_ray.recipe.section import PLACEMENT, Name, Section


class Report(Section):
    """What is measured on the held-out split."""

    samples: int = Field(6, ge=0)
    sample_tokens: int = Field(64, ge=1)
    views: int = Field(4, ge=0)
    bootstrap: int = Field(2000, ge=100)


class Judge(Section):
    """A model behind an OpenAI-compatible server that grades answers to MT-Bench-style questions, for the report."""

    base_url: Annotated[str, PLACEMENT]
    model: str
    questions: Annotated[str, PLACEMENT]
    kinds: tuple[Literal["single", "pairwise"], ...] = Field(("single", "pairwise"), min_length=1)
    max_length: int = Field(4096, ge=8)
    answer_tokens: int = Field(1024, ge=1)
    judgment_tokens: int = Field(2048, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)
    api_key_variable: Annotated[str, PLACEMENT] = "OPENAI_API_KEY"
    usd_per_million_input_tokens: float | None = Field(None, ge=0)
    usd_per_million_output_tokens: float | None = Field(None, ge=0)
    concurrency: Annotated[int, PLACEMENT] = Field(8, ge=1)
    timeout_s: Annotated[float, PLACEMENT] = Field(300, gt=0)
    retries: Annotated[int, PLACEMENT] = Field(5, ge=0)


class HarnessTask(Section):
    """A task that lm-evaluation-harness knows, or one of the recipe's own folder of task files."""

    kind: Literal["harness"] = "harness"
    name: str = Field(min_length=1)


class LocalTask(Section):
    """A benchmark over a file of one's own: multiple choice in MMLU's columns, or the bits per byte of gold answers."""

    kind: Literal["multiple_choice", "gold_answer"]
    name: Name
    path: str
    few_shot_path: str | None = None


def _task_by_name(value: Any) -> Any:
    return {"kind": "harness", "name": value} if isinstance(value, str) else value


Task = Annotated[Annotated[HarnessTask | LocalTask, Field(discriminator="kind")], BeforeValidator(_task_by_name)]


class Evaluate(Section):
    """Benchmarks of lm-evaluation-harness for all models of the run; part of the report."""

    tasks: tuple[Task, ...] = Field(min_length=1)
    folder: str | None = None
    few_shot: int | None = Field(None, ge=0)
    limit: int | None = Field(None, ge=1)
    chat_template: bool = False
    batch_size: Annotated[int, PLACEMENT] = Field(8, ge=1)
    max_length: int | None = Field(None, ge=8)
