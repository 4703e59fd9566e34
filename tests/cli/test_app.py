"""The command line: one clear message and an exit code, and what `plan` and `init` print."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from toys.models import byte_level_tokenizer, save_toy, sentencepiece_tokenizer

from fusion_ray.cli import app as cli
from fusion_ray.pipeline.graph import build_graph
from fusion_ray.pipeline.status import list_statuses
from fusion_ray.recipe import load_recipe


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_toy(folder / "pivot", "llama", byte_level_tokenizer())
    save_toy(folder / "math", "gpt_neox", sentencepiece_tokenizer())
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat | {"id": n}) + "\n" for n in range(20)))
    return folder


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command; returns its exit code."""
    monkeypatch.setattr("sys.argv", ["fusion-ray", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def write_recipe(models: Path, folder: Path, **sections: object) -> Path:
    data = {
        "name": "x",
        "runs": str(folder / "runs"),
        "pivot": {"model": str(models / "pivot")},
        "sources": [{"name": "math", "model": str(models / "math")}],
        "corpus": {"path": str(models / "chats.jsonl")},
        **sections,
    }
    path = folder / "x.yaml"
    path.write_text(json.dumps(data))
    return path


def test_a_misspelt_key_is_one_line_and_exit_code_2(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(models, tmp_path, targets={"learning_rat": 1})
    assert invoke(monkeypatch, "run", str(path)) == 2
    err = capsys.readouterr().err
    assert "did you mean 'learning_rate'" in err
    assert "Traceback" not in err


def test_a_missing_model_stops_a_run_and_blocks_in_the_plan(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(models, tmp_path, pivot={"model": "./nowhere"})
    assert invoke(monkeypatch, "run", str(path)) == 2
    assert "./nowhere" in capsys.readouterr().err
    assert invoke(monkeypatch, "plan", str(path)) == 0
    planned = capsys.readouterr().out
    assert "blocked" in planned
    assert "no such folder" in " ".join(planned.split())


def test_a_plan_before_the_first_run_has_everything_to_do(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(monkeypatch, "plan", str(write_recipe(models, tmp_path))) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.rstrip().endswith("to do")]
    assert [line.split()[0] for line in lines] == [
        "corpus", "distributions/pivot", "distributions/math", "fused/math", "targets/sft", "distributions/sft",
        "targets/math", "merged", "report",
    ]  # fmt: skip


def test_judge_and_benchmarks_make_only_the_report_stale_and_only_by_what_they_are(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "q.jsonl"
    judge = {"base_url": "http://one/v1", "model": "large", "questions": str(questions)}
    task = {"kind": "gold_answer", "name": "gold", "path": str(questions)}
    path = write_recipe(models, tmp_path, judge=judge, evaluate={"tasks": [task]})
    assert invoke(monkeypatch, "run", str(path)) == 2
    assert f"judge.questions: no file {questions}" in capsys.readouterr().err
    assert {str(s.artifact): s.state for s in list_statuses(load_recipe(path))}["report"] == "blocked"

    def prints(*overrides: str) -> dict[str, str]:
        return {str(a): a.fingerprint for a in build_graph(load_recipe(path, overrides))}

    questions.write_text("{}\n")
    before = prints()
    assert prints("judge.base_url=http://two/v1", "judge.retries=9", "evaluate.batch_size=2") == before
    for changed in ({"judge.model=other"}, {"evaluate.few_shot=3"}, set()):
        questions.write_text("{}\n" if changed else "[]\n")
        after = prints(*changed)
        assert {name for name in before if before[name] != after[name]} == {"report"}


def test_init_writes_a_recipe_that_opens_and_names_what_it_saw(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    arguments = ["init", str(models / "pivot"), str(models / "math"), "--corpus", str(models / "chats.jsonl")]
    assert invoke(monkeypatch, *arguments, "-o", str(path)) == 0
    recipe = load_recipe(path)
    assert [source.name for source in recipe.sources] == ["math"]
    assert recipe.distributions.max_length == 256
    assert "GPTNeoXForCausalLM" in path.read_text()
    assert invoke(monkeypatch, *arguments, "-o", str(path)) == 2


def test_show_without_a_report_is_exit_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(monkeypatch, "show", str(tmp_path)) == 3
    assert "report" in capsys.readouterr().err


def test_doctor_finds_the_packages_that_are_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(monkeypatch, "doctor") == 0
    out = capsys.readouterr().out
    assert "deepspeed" in out
    assert "missing" not in out.split("vLLM")[0]


def test_align_shows_both_tokenizations_of_every_byte(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "Größe 🎉 of the answer"
    folders = (str(models / "pivot"), str(models / "math"))
    assert invoke(monkeypatch, "align", text, *folders, "--json", "--score") == 0
    groups = json.loads(capsys.readouterr().out)
    for side in ("pivot", "source"):
        tokens = [token for group in groups for token in group[side]]
        assert tokens[-2]["stop"] == len(text.encode())
        assert all(0 < token["real"] <= 1 for token in tokens)
    assert any(token["projected"] for group in groups for token in group["pivot"])
    assert invoke(monkeypatch, "align", text, *folders) == 0
    assert "pivot" in capsys.readouterr().out


def test_merge_follows_a_mergekit_yaml(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "merge.yaml"
    entry = {"model": str(models / "pivot"), "parameters": {"weight": 1.0}}
    config.write_text(json.dumps({"merge_method": "linear", "dtype": "float32", "models": [entry]}))
    assert invoke(monkeypatch, "merge", str(config), str(tmp_path / "merged")) == 0
    weights = (tmp_path / "merged" / "model.safetensors", models / "pivot" / "model.safetensors")
    ours, theirs = (load_file(path) for path in weights)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert invoke(monkeypatch, "merge", str(tmp_path / "merged"), str(tmp_path / "more"), "--add", "math") == 2
    assert "expected NAME=FOLDER" in capsys.readouterr().err


def test_push_lists_the_files_and_sends_nothing_without_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("12345")
    assert invoke(monkeypatch, "push", str(tmp_path), "--repo", "user/name") == 0
    said = capsys.readouterr().out
    assert "Nothing was sent" in said and "model.safetensors" in said and "10" in said
    assert invoke(monkeypatch, "push", str(tmp_path), "--repo", "user/name", "--yes") == 2


def test_show_takes_one_run_or_two_and_prints_one_report_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "6_report").mkdir()
    report = {"verdict": {}, "bits_per_byte": {}}
    (tmp_path / "6_report" / "report.json").write_text(json.dumps(report))
    assert invoke(monkeypatch, "show", "--json", str(tmp_path)) == 3, "a report without a manifest is not finished"
    (tmp_path / "6_report" / "MANIFEST.json").write_text("{}")
    capsys.readouterr()
    assert invoke(monkeypatch, "show", "--json", str(tmp_path)) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert invoke(monkeypatch, "show", "--json", str(tmp_path), str(tmp_path)) == 0
    assert json.loads(capsys.readouterr().out) == [report] * 2
    assert invoke(monkeypatch, "show", str(tmp_path), str(tmp_path), str(tmp_path)) == 2
