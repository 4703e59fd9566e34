"""Fusing a shard: alignment and choice over real distributions of tiny models with different tokenizers."""

from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from toys.models import FLOAT32, byte_level_tokenizer, save_toy, sentencepiece_tokenizer

from fusion_ray.corpus.row_formats import CORPUS_SCHEMA
from fusion_ray.distributions.score import count_cut, open_reader, read_scored, read_topk, render_rows, score_rows
from fusion_ray.errors import StaleArtifactError
from fusion_ray.fused.fuse import Fuser, Statistics
from fusion_ray.models.scorer import DrawSettings
from fusion_ray.models.transformers import TransformersScorer
from fusion_ray.recipe import Distributions, DtwAlign, Fused, Model
from fusion_ray.report.alignment_view import view_alignment
from fusion_ray.storage.topk import NO_TEACHER
from fusion_ray.storage.topk_codec import compact_topk, expand_topk

TEXTS = [
    "The answer is 42.",
    "def f(x):\n    return x + 1",
    "Größe 漢字 🎉 done",
    "It was a dark and stormy night. " * 3,
]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A corpus shard of five rows, the last one unusable, scored by three models; `twin` is the pivot again."""
    folder = tmp_path_factory.mktemp("fusing")
    folders = {
        "pivot": save_toy(folder / "pivot", "llama", sentencepiece_tokenizer()),
        "other": save_toy(folder / "other", "qwen2", byte_level_tokenizer()),
    }
    folders["twin"] = folders["pivot"]
    rows: list[dict[str, Any]] = [
        {
            "id": str(number),
            "domain": "a" if number % 2 else "b",
            "messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": text}],
            "reason": None,
        }
        for number, text in enumerate(TEXTS)
    ]
    rows.append({"id": "bad", "domain": None, "messages": None, "reason": "no answer"})
    chats = pa.Table.from_pylist(rows, schema=CORPUS_SCHEMA)
    scored = {}
    for name, path in folders.items():
        tokenizer, settings = open_reader(Model(model=path), Distributions(), path)
        scored[name] = score_rows(
            render_rows(chats, tokenizer, settings),
            TransformersScorer(path, 5, FLOAT32),
        )
    return {"chats": chats, "scored": scored, "folders": folders}


@pytest.mark.parametrize("align", ["bytes", "em", "mined", "ms"])
def test_the_viewer_shows_what_fusing_does_in_every_mode(align: str, shard: dict[str, Any]) -> None:
    folders = {name: shard["folders"][name] for name in ("pivot", "other")}
    scored = {name: shard["scored"][name] for name in folders}
    settings = Fused.model_validate({"align": align, "top_k": 5})
    fuser = Fuser(settings, folders)
    if align == "ms":
        fuser = Fuser(
            settings, folders, {"other": Statistics(pairs=fuser.count_pairs(shard["chats"], scored)["other"])}
        )
    row = {name: table.slice(2, 1) for name, table in scored.items()}
    view = view_alignment(fuser, "other", row["pivot"], row["other"])
    tokens = [token for group in view["groups"] for token in group["pivot"]]
    assert view["shown"] == view["tokens"] == len(tokens) == sum(row["pivot"]["turn_lengths"][0].as_py())
    expected = fuser.align("other", read_scored(row["pivot"]), read_scored(row["other"])).topk
    shown = [token.get("projected_real", np.nan) for token in tokens]
    np.testing.assert_allclose(shown, np.exp(expected.real_logprobs_T), rtol=1e-6)
    assert any(entry[1] > 0 for token in tokens for entry in token["projected"])


def fuse(shard: dict[str, Any], sources: list[str], **settings: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    names = ["pivot", *sources]
    fuser = Fuser(Fused(**{"pivot_wins": "distil"} | settings), {name: shard["folders"][name] for name in names})
    fused = fuser.fuse(shard["chats"], {name: shard["scored"][name] for name in names})
    return fused.table.to_pylist(), fused.facts


def test_every_answer_position_gets_a_distribution_and_rows_keep_their_order(shard: dict[str, Any]) -> None:
    rows, facts = fuse(shard, ["other"])
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "bad"]
    for row in rows[:4]:
        answers = sum(row["turn_lengths"])
        assert len(row["chosen"]) == len(row["real_logprobs"]) == answers
        assert len(row["topk_ids"]) == len(row["topk_logprobs"]) == 5 * answers
        assert len(row["bits_per_byte"]) == 2
    assert rows[4]["input_ids"] is None
    assert facts["rejected"] == [("bad", "no answer")]
    counts = facts["alignment"]["other"]
    assert counts["covered"] == counts["positions"]
    assert counts["violation_nats"] < 1e-4
    assert sum(sum(choices.values()) for choices in facts["chosen"].values()) == counts["positions"]


@pytest.mark.parametrize("unit", ["byte", "token"])
def test_models_are_compared_in_bits_per_byte_of_the_answer_or_in_nats_per_own_token(
    unit: str, shard: dict[str, Any]
) -> None:
    rows, _ = fuse(shard, ["other"], choose={"kind": "mince", "unit": unit})
    for number, row in enumerate(rows[:4]):
        for found, name in zip(row["bits_per_byte"], ("pivot", "other"), strict=True):
            logprobs = shard["scored"][name]["real_logprobs"][number].as_py()
            units = len(TEXTS[number].encode()) * np.log(2.0) if unit == "byte" else len(logprobs)
            assert found == pytest.approx(-sum(logprobs) / units, rel=1e-4)


def test_the_lower_bits_per_byte_teach_the_whole_row(shard: dict[str, Any]) -> None:
    rows, _ = fuse(shard, ["other"])
    for row in rows[:4]:
        pivot, other = row["bits_per_byte"]
        assert set(row["chosen"]) == {0 if pivot <= other else 1}


def test_a_tie_goes_to_the_pivot_and_gold_leaves_it_out(shard: dict[str, Any]) -> None:
    rows, _ = fuse(shard, ["twin"])
    assert {model for row in rows[:4] for model in row["chosen"]} == {0}
    rows, facts = fuse(shard, ["twin"], pivot_wins="gold")
    assert {model for row in rows[:4] for model in row["chosen"]} == {NO_TEACHER}
    assert set(facts["chosen"]["a"]) == {"gold"}


def test_the_pivot_aligned_to_itself_is_itself(shard: dict[str, Any]) -> None:
    rows, _ = fuse(shard, ["twin"], choose={"kind": "avgce"})
    theirs = read_topk(shard["scored"]["pivot"].slice(0, 4))
    ours = np.concatenate([row["topk_logprobs"] for row in rows[:4]]).reshape(-1, 5)
    np.testing.assert_allclose(np.exp(ours), np.exp(theirs.logprobs_TK), atol=1e-5)


def test_token_level_choice_is_never_worse_than_row_level_choice(shard: dict[str, Any]) -> None:
    by_row, _ = fuse(shard, ["other"])
    by_group, _ = fuse(shard, ["other"], choose={"kind": "mince", "level": "token"})
    for whole, parts in zip(by_row[:4], by_group[:4], strict=True):
        assert sum(parts["real_logprobs"]) >= sum(whole["real_logprobs"]) - 1e-3


@pytest.mark.parametrize("pivot_wins", ["distil", "gold"])
def test_what_a_chosen_source_is_not_believed_is_taught_as_where_the_pivot_wins(
    shard: dict[str, Any], pivot_wins: str
) -> None:
    def distributions(trust: float) -> tuple[np.ndarray, list[int]]:
        rows, facts = fuse(shard, ["other"], choose={"kind": "mince", "trust": trust}, pivot_wins=pivot_wins)
        assert facts["alignment"]["other"]["trust"] == trust
        reals = np.concatenate([row["real_logprobs"] for row in rows[:4]])
        return np.exp(reals), [model for row in rows[:4] for model in row["chosen"]]

    source, chosen = distributions(1.0)
    pivot = np.exp(np.concatenate([row for row in shard["scored"]["pivot"]["real_logprobs"].to_pylist() if row]))
    by_source = np.array(chosen) == 1
    assert 0 < by_source.sum() < len(chosen)
    for trust in (0.9, 0.01):
        mixed, same = distributions(trust)
        believed = trust * source / (trust * source + (1 - trust) * pivot)
        rest = pivot if pivot_wins == "distil" else 1.0
        expected = np.where(by_source, believed * source + (1 - believed) * rest, source)
        np.testing.assert_allclose(mixed, expected, rtol=1e-5)
        assert same == chosen


def test_trust_is_counted_where_the_source_is_chosen_and_only_a_fitted_one_is_looked_up(shard: dict[str, Any]) -> None:
    folders = {name: shard["folders"][name] for name in ("pivot", "other")}
    scored = {name: shard["scored"][name] for name in folders}
    fuser = Fuser(Fused(), folders)
    rows = fuser.fuse(shard["chats"], scored).table.to_pylist()[:4]
    assert fuser.count_ratios(shard["chats"], scored)["other"].sum() == sum(row["chosen"].count(1) for row in rows) > 0
    known = {"other": Statistics(trust=0.25)}
    for choose, trust in [({}, 0.25), ({"trust": 0.5}, 0.5), ({"kind": "avgce"}, 1.0)]:
        settings = Fused.model_validate({"choose": choose})
        assert (
            Fuser(settings, folders, known).fuse(shard["chats"], scored).facts["alignment"]["other"]["trust"] == trust
        )


def test_with_several_sources_the_best_of_all_teaches(shard: dict[str, Any]) -> None:
    rows, facts = fuse(shard, ["other", "twin"], mode="multi")
    for row in rows[:4]:
        assert set(row["chosen"]) == {int(np.argmin(row["bits_per_byte"]))}
    assert set(facts["alignment"]) == {"other", "twin"}


@pytest.mark.parametrize("kind", ["em", "mined", "ms"])
def test_the_published_alignments_fuse_too_and_cover_less_mass(shard: dict[str, Any], kind: str) -> None:
    settings = Fused(align=DtwAlign(kind=kind))  # type: ignore[arg-type]
    folders = {name: shard["folders"][name] for name in ("pivot", "other")}
    scored = {name: shard["scored"][name] for name in folders}
    fuser = Fuser(settings, folders)
    if kind == "ms":
        counted = [fuser.count_pairs(shard["chats"], scored)["other"] for _ in range(2)]
        fuser = Fuser(settings, folders, {"other": Statistics(pairs=reduce(lambda a, b: a + b, counted))})
    facts = fuser.fuse(shard["chats"], scored).facts["alignment"]["other"]
    assert 0 < facts["transferred"] <= facts["positions"]
    assert facts["one_hot"] > 0


def test_rows_of_another_corpus_are_refused(shard: dict[str, Any]) -> None:
    scored = {"pivot": shard["scored"]["pivot"], "other": shard["scored"]["other"].slice(1)}
    with pytest.raises(StaleArtifactError, match="'other' hold other rows"):
        Fuser(Fused(), {name: shard["folders"][name] for name in scored}).fuse(shard["chats"], scored)


def drawn(shard: dict[str, Any], names: list[str], draws: int, seed: int) -> dict[str, pa.Table]:
    """The shard scored by draws, stored and read again."""
    tables = {}
    for name in names:
        path = shard["folders"][name]
        tokenizer, settings = open_reader(Model(model=path), Distributions(), path)
        scorer = TransformersScorer(path, 5, FLOAT32, sampling=DrawSettings(draws, seed))
        scored = score_rows(render_rows(shard["chats"], tokenizer, settings), scorer)
        tables[name] = expand_topk(compact_topk(scored))
    return tables


def test_draws_are_aligned_and_chosen_as_top_k_are(shard: dict[str, Any]) -> None:
    names = ["pivot", "other", "twin"]
    fuser = Fuser(Fused(), {name: shard["folders"][name] for name in names[:2]})
    sampled = fuser.fuse(shard["chats"], drawn(shard, names[:2], 40, 0))
    top_k = fuser.fuse(shard["chats"], {name: shard["scored"][name] for name in names[:2]})
    assert sampled.facts["rejected"] == top_k.facts["rejected"] == [("bad", "no answer")]
    assert sampled.facts["chosen"] == top_k.facts["chosen"]
    for name in ("covered", "one_to_one", "source_nll"):
        ours, theirs = (facts["alignment"]["other"][name] for facts in (sampled.facts, top_k.facts))
        assert ours == pytest.approx(theirs, abs=0.05)
    for row in sampled.table.to_pylist()[:-1]:
        ids = np.array(row["topk_ids"]).reshape(len(row["chosen"]), -1)
        assert ids.shape[1] > 5 and (ids[:, 0] >= 0).all()


def test_draws_that_hit_many_ids_are_not_cut_where_the_pivots_hit_few(shard: dict[str, Any]) -> None:
    few, many = drawn(shard, ["pivot"], 2, 0), drawn(shard, ["twin"], 40, 0)
    fuser = Fuser(Fused(), {name: shard["folders"][name] for name in ("pivot", "twin")})
    usable = shard["chats"].num_rows - 1
    pivot, twin = (read_scored(table.slice(0, usable)) for table in (few["pivot"], many["twin"]))
    projected, uncut = (fuser.align("twin", other, twin).topk for other in (pivot, twin))
    np.testing.assert_array_equal(projected.ids_TK, uncut.ids_TK)
    assert pivot.topk.ids_TK.shape[1] <= 2 < projected.ids_TK.shape[1]
    for row in fuser.fuse(shard["chats"], few | many).table.to_pylist()[:usable]:
        assert len(row["topk_ids"]) == len(row["chosen"]) * projected.ids_TK.shape[1]


def test_of_draws_that_are_believed_in_part_nothing_is_cut(shard: dict[str, Any]) -> None:
    names = ["pivot", "other"]
    folders, scored = {name: shard["folders"][name] for name in names}, drawn(shard, names, 6, 0)
    settings = Fused.model_validate({"choose": {"trust": 0.5}})
    mass = {}
    for is_drawn, width in ((True, 7), (False, 6)):  # the gold token is one more than was drawn
        fused = Fuser(settings, folders, drawn=is_drawn).fuse(shard["chats"], scored).table.to_pylist()[0]
        mass[is_drawn] = np.exp(np.array(fused["topk_logprobs"]).reshape(-1, width)).sum(axis=1)
    assert (mass[True] >= mass[False]).all() and (mass[True] > mass[False] + 1e-4).any()


def test_too_long_chats_are_cut_at_the_recipes_or_the_models_limit_and_counted(shard: dict[str, Any]) -> None:
    def lengths(max_length: int, text: str) -> tuple[list[int], int]:
        tokenizer, settings = open_reader(Model(model=""), Distributions(max_length=max_length), folder)
        messages = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": text}]
        chats = pa.Table.from_pylist(
            [{"id": "a", "messages": messages}, *shard["chats"].to_pylist()[:2]], CORPUS_SCHEMA
        )
        rendered = render_rows(chats, tokenizer, settings)
        return [len(ids) for ids in rendered["input_ids"].to_pylist()], count_cut(rendered)

    folder = shard["folders"]["pivot"]
    whole, none = lengths(250, "Yes.")
    assert none == 0 and max(whole) < 250
    assert lengths(250, "la " * 400) == ([250, *whole[1:]], 1)
    assert lengths(2048, "la " * 400) == ([256, *whole[1:]], 1)
    assert lengths(min(whole[1:]) - 1, "Yes.")[1] >= 1


def test_aligned_draws_are_unbiased(shard: dict[str, Any]) -> None:
    repeats, draws = 300, 8
    exact = TransformersScorer(shard["folders"]["pivot"], 600, FLOAT32)
    tokenizer, settings = open_reader(Model(model=""), Distributions(), shard["folders"]["pivot"])
    rendered = render_rows(shard["chats"].slice(0, 1), tokenizer, settings)
    whole = read_topk(score_rows(rendered, exact))
    truth_TV = np.zeros((len(whole), 700))
    np.put_along_axis(truth_TV, whole.ids_TK, np.exp(whole.logprobs_TK), axis=1)
    mean_TV = np.zeros_like(truth_TV)
    scorer = TransformersScorer(shard["folders"]["pivot"], 5, FLOAT32, sampling=DrawSettings(draws))
    fuser = Fuser(Fused(), {name: shard["folders"][name] for name in ("pivot", "twin")})
    for seed in range(repeats):
        scorer._sampling = DrawSettings(draws, seed)
        table = score_rows(rendered, scorer)
        projection = fuser.align("twin", read_scored(table), read_scored(table))
        for t, (ids, logprobs) in enumerate(zip(projection.topk.ids_TK, projection.topk.logprobs_TK, strict=True)):
            mean_TV[t, ids[ids >= 0]] += np.exp(logprobs[ids >= 0].astype(np.float64)) / repeats
    deviation_TV = np.sqrt(truth_TV * (1 - truth_TV) / (repeats * draws))
    assert (np.abs(mean_TV - truth_TV) < 5 * deviation_TV + 0.003).all()


@pytest.mark.parametrize(
    "settings",
    [{}, {"align": "em"}, {"align": "ms"}, {"choose": "avgce"}, {"choose": {"kind": "mince", "level": "token"}}],
    ids=str,
)
def test_a_shard_without_a_usable_row_keeps_its_rows_with_their_reasons(
    shard: dict[str, Any], settings: dict[str, Any]
) -> None:
    chats, last = shard["chats"].slice(4), {name: shard["scored"][name].slice(4) for name in ("pivot", "other")}
    fuser = Fuser(Fused.model_validate(settings), {name: shard["folders"][name] for name in last})
    if settings.get("align") == "ms":
        fuser.statistics = {"other": Statistics(pairs=fuser.count_pairs(chats, last)["other"])}
    fused = fuser.fuse(chats, last)
    assert fused.table.to_pylist()[0]["reason"] == "no answer"
    assert fused.facts["rejected"] == [("bad", "no answer")]
    assert fused.facts["alignment"]["other"]["positions"] == 0
