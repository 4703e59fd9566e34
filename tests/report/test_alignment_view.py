"""The viewer of the page: an answer laid out in two tokenizations, turn by turn, up to a length."""

from typing import Any

import pyarrow as pa
import pytest
from toys.models import FLOAT32, byte_level_tokenizer, save_toy, sentencepiece_tokenizer

from fusion_ray.corpus.row_formats import CORPUS_SCHEMA
from fusion_ray.distributions.score import open_reader, render_rows, score_rows
from fusion_ray.fused.fuse import Fuser
from fusion_ray.models.transformers import TransformersScorer
from fusion_ray.recipe import Distributions, Fused, Model
from fusion_ray.report import alignment_view
from fusion_ray.report.alignment_view import view_alignment


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A chat of two turns that the pivot reads whole and the source only up to its second answer."""
    folder = tmp_path_factory.mktemp("viewing")
    folders = {
        "pivot": save_toy(folder / "pivot", "llama", sentencepiece_tokenizer()),
        "source": save_toy(folder / "source", "qwen2", byte_level_tokenizer()),
    }
    said = [("user", "Hi"), ("assistant", "The answer is 42."), ("user", "o " * 40), ("assistant", "Größe, and more.")]
    messages = [{"role": role, "content": text} for role, text in said]
    row = {"id": "a", "domain": None, "messages": messages, "reason": None}
    chats = pa.Table.from_pylist([row], schema=CORPUS_SCHEMA)
    tables = {}
    for name, path in folders.items():
        for cut, length in (("", 2048), (" cut", 50)):
            tokenizer, settings = open_reader(Model(model=path), Distributions(max_length=length), path)
            tables[name + cut] = score_rows(
                render_rows(chats, tokenizer, settings), TransformersScorer(path, 5, FLOAT32)
            )
    return {"fuser": Fuser(Fused(), folders), **tables}


def texts(view: dict[str, Any], side: str) -> str:
    return "".join(token["text"] for group in view["groups"] for token in group[side])


def test_both_turns_are_laid_out_with_all_their_tokens(scored: dict[str, Any]) -> None:
    view = view_alignment(scored["fuser"], "source", scored["pivot"], scored["source"])
    shown = sum(len(group["pivot"]) for group in view["groups"])
    assert view["shown"] == view["tokens"] == shown == sum(scored["pivot"]["turn_lengths"][0].as_py())
    for side in ("pivot", "source"):
        assert "answer·is·42." in texts(view, side).replace("▁", "·")
        assert "more." in texts(view, side)
    first = view["groups"][0]["pivot"][0]
    assert set(first) == {"text", "real", "top", "projected", "projected_real"}
    assert 1 <= len(first["top"]) <= 6 and all(round(chance, 4) == chance for _, chance, _ in first["top"])
    assert "projected" not in view["groups"][0]["source"][0]


def test_a_turn_that_the_source_has_lost_is_left_out(scored: dict[str, Any]) -> None:
    assert len(scored["source cut"]["turn_lengths"][0].as_py()) < 2 or not scored["source cut"]["turn_lengths"][0][1]
    view = view_alignment(scored["fuser"], "source", scored["pivot"], scored["source cut"])
    assert "42." in texts(view, "pivot") and "more." not in texts(view, "pivot")
    assert view["shown"] == scored["pivot"]["turn_lengths"][0].as_py()[0] < view["tokens"]


def test_no_group_is_begun_that_would_be_too_long(scored: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = view_alignment(scored["fuser"], "source", scored["pivot"], scored["source"])
    sizes = [len(group["pivot"]) for group in whole["groups"]]
    first = sizes[0] + sizes[1]
    for most, groups in ((first, 2), (first - 1, 1), (whole["tokens"], len(sizes))):
        monkeypatch.setattr(alignment_view, "_MOST_TOKENS", most)
        view = view_alignment(scored["fuser"], "source", scored["pivot"], scored["source"])
        assert view["groups"] == whole["groups"][:groups]
        assert (view["shown"], view["tokens"]) == (sum(sizes[:groups]), whole["tokens"])
