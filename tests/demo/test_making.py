"""The demo's chats, tokenizers and models."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fusion_ray.demo import prepare
from fusion_ray.demo.chats import Texts, all_chats
from fusion_ray.demo.making import recipe_text, split_chats
from fusion_ray.demo.plans import DEMO, DOMAINS, PLANS, TINY
from fusion_ray.errors import RecipeError
from fusion_ray.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
FEW = Texts(code="[a-c]*.py", packages=("jinja2",), languages=("english", "chinese"))


def test_the_package_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'tokenizers', 'ray', 'numpy'}"
    script = f"import sys, fusion_ray.demo; sys.exit(', '.join({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_chats_of_every_domain_have_ids_of_their_own_and_answers_of_their_own() -> None:
    chats = all_chats(FEW)
    assert set(Counter(chat.domain for chat in chats)) == set(DOMAINS)
    assert len({chat.id for chat in chats}) == len(chats)
    answers = [" ".join("\n".join(chat.turns[1::2]).lower().split()) for chat in chats]
    assert len(set(answers)) == len(answers)


def test_chats_alternate_between_user_and_assistant_and_keep_to_the_length() -> None:
    for chat in all_chats(FEW):
        roles = [message["role"] for message in chat.messages()]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert 24 <= len("\n".join(chat.turns[1::2]).encode()) <= 320


def test_code_answers_are_python_without_their_documentation() -> None:
    code = [chat for chat in all_chats(FEW) if chat.domain == "code"]
    for chat in code:
        compile(chat.turns[1], chat.id, "exec")
    bisect = next(chat for chat in code if chat.id.startswith("code/bisect.insort_right/"))
    assert bisect.turns[0].startswith(
        "Write the Python function insort_right(a, x, lo=0, hi=None, *, key=None): Insert"
    )
    assert '"""' not in bisect.turns[1]


def test_chats_for_fusion_are_none_of_those_that_train_the_models() -> None:
    chats = all_chats(FEW)
    training, fusion = split_chats(chats, TINY, seed=0)
    assert not {chat.id for chat in training} & {chat.id for chat in fusion}
    assert Counter(chat.domain for chat in fusion) == dict.fromkeys(DOMAINS, TINY.fusion_chats)
    assert {chat.id for chat in split_chats(chats, TINY, seed=1)[1]} != {chat.id for chat in fusion}


@pytest.mark.parametrize("size", PLANS)
def test_the_shipped_recipe_is_the_packaged_one_and_opens(size: str) -> None:
    shipped = RECIPES / f"{size}.yaml"
    assert shipped.read_text(encoding="utf-8") == recipe_text(size, Path(size), seed=0)
    recipe = load_recipe(shipped)
    assert recipe.pivot.model == f"{size}/models/pivot"
    assert [source.name for source in recipe.sources] == [model.name for model in PLANS[size].models[:-1]]


def test_a_recipe_written_elsewhere_names_that_folder_and_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text("demo", tmp_path, seed=7), encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.seed == 7
    assert recipe.corpus.path == f"{tmp_path}/chats.jsonl"
    assert all(Path(source.model).parent == tmp_path / "models" for source in recipe.sources)


def test_every_model_has_heads_that_vllm_takes() -> None:
    for model in (*DEMO.models, *TINY.models):
        assert model.head_dim in (32, 64)
        assert model.hidden_size % model.head_dim == 0


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no size 'huge'"):
        prepare(tmp_path, size="huge")


def test_chats_are_written_as_the_recipe_reads_them(tmp_path: Path) -> None:
    from fusion_ray.demo.making import _make_chats

    _make_chats(tmp_path, TINY, 0, lambda _: None)
    rows = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 3 * TINY.fusion_chats
    assert set(rows[0]) == {"id", "domain", "messages"}


def test_chats_that_begin_alike_and_go_on_differently_are_both_kept() -> None:
    first = Counter(chat.turns[1] for chat in all_chats(FEW))
    assert max(first.values()) > 1
