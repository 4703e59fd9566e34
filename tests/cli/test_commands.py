"""What commands hand to the functions behind them, and what they print besides."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from toys.screen import printed, styled

from fusion_ray import api
from fusion_ray.cli import app as cli
from fusion_ray.cli import inspect as inspecting
from fusion_ray.cli.plan import _states_table
from fusion_ray.distributions.inspect_chats import InspectedRow, InspectedToken
from fusion_ray.pipeline.status import Status
from fusion_ray.planning.forecast import Forecast
from fusion_ray.planning.sizes import GPUS, Cluster, CorpusSize
from fusion_ray.recipe import parse_recipe
from fusion_ray.report.push import Parcel
from fusion_ray.storage.artifacts import Artifact

RECIPE = parse_recipe(
    {
        "name": "x", "runs": "/nowhere", "pivot": {"model": "p"}, "corpus": {"path": "c"},
        "sources": [{"name": "m", "model": "m"}],
    }
)  # fmt: skip
CLUSTER = Cluster(cpus=1, gpus=0, gpu=GPUS["a100"], memory_gib=1, object_store_gib=1, disk_gib=1)


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["fusion-ray", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def recorded(monkeypatch: pytest.MonkeyPatch, name: str, result: Any = None) -> list[tuple[Any, ...]]:
    """What a command hands to a function of the API, in whose place this one gives the result."""
    calls: list[tuple[Any, ...]] = []

    def record(*given: Any, **named: Any) -> Any:
        calls.append((*given, named))
        return result

    monkeypatch.setattr(api, name, record)
    return calls


def test_the_state_of_every_artifact_stands_in_a_table_with_its_colour() -> None:
    statuses = [
        Status(Artifact(run="/r", stage="corpus"), "done", ""),
        Status(Artifact(run="/r", stage="fused", source="m"), "stale", "a [b] was 1, is 2"),
        Status(Artifact(run="/r", stage="merged"), "to do", ""),
        Status(Artifact(run="/r", stage="report"), "blocked", "no file"),
    ]
    forecast = Forecast(CLUSTER, CorpusSize(1, 1.0, "x"), {}, [], [], [], None)
    table = _states_table(api.Plan(RECIPE, statuses, forecast))
    assert printed([table]) == [
        "x in /nowhere/x",
        "artifact  state    why",
        "corpus    done",
        "fused/m   stale    a [b] was 1, is 2",
        "merged    to do",
        "report    blocked  no file",
    ]
    assert styled([table]) == [("done", "green"), ("stale", "yellow"), ("to do", "cyan"), ("blocked", "red")]
    assert any(line.startswith("fused/m   stale") for line in printed([table], width=21)), "only reasons are broken"


@pytest.mark.parametrize("options", [(), ("--set", "a=1", "--set", "b=2")])
def test_plan_hands_on_what_is_set_and_prints_json_where_asked(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast = Forecast(CLUSTER, CorpusSize(1, 1.0, "x"), {}, [], [], [], None)
    loaded = recorded(monkeypatch, "load_recipe", RECIPE)
    recorded(monkeypatch, "plan", found := api.Plan(RECIPE, [], forecast))
    assert invoke(monkeypatch, "plan", "r.yaml", *options, "--json") == 0
    assert loaded == [(Path("r.yaml"), options[1::2], {})]
    assert capsys.readouterr().out == json.dumps(found.plain(), indent=1) + "\n"
    assert invoke(monkeypatch, "plan", "r.yaml") == 0
    assert capsys.readouterr().out.startswith("x in /nowhere/x")


@pytest.mark.parametrize(
    ("options", "add", "seed"),
    [((), None, 0), (("--add", "a=b=c", "--seed", "3"), {"a": "b=c"}, 3), (("--add", "a=b"), {"a": "b"}, 0)],
)
def test_merge_adds_a_target_only_where_one_is_named(
    options: tuple[str, ...],
    add: dict[str, str] | None,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = recorded(monkeypatch, "merge")
    assert invoke(monkeypatch, "merge", "c.yaml", "out", *options) == 0
    ((config, out, named),) = calls
    assert (config, out, named["add"], named["seed"], named["threads"]) == ("c.yaml", "out", add, seed, None)
    assert capsys.readouterr().out == "Wrote out\n"


@pytest.mark.parametrize(
    "options", [("--add", ""), ("--add", "a"), ("--add", "a="), ("--threads", "0")]
)  # fmt: skip
def test_what_merge_cannot_use_is_refused(options: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, "merge")
    assert invoke(monkeypatch, "merge", "c.yaml", "out", *options) == 2 and calls == []


@pytest.mark.parametrize(("options", "private"), [((), True), (("--no-private",), False)])
def test_push_lists_what_it_sends_and_sends_it_once_it_is_told_to(
    options: tuple[str, ...], private: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parcel = Parcel("runs/x/5_merged", {"a.json": 1_234, "b": 5}, ["/home/me"], "https://there")
    calls = recorded(monkeypatch, "push", parcel)
    assert invoke(monkeypatch, "push", "runs/x", "--repo", "me/it", *options) == 0
    listed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert listed == [
        "runs/x/5_merg",
        "ed to me/it",
        "file    bytes",
        "a.json  1,234",
        "b           5",
        "all     1,239",
        "README.md or merge_config.yaml name folders of this machine: /home/me. Edit them",
        "first.",
        "Nothing was sent. `--yes` sends it.",
    ]
    assert calls == [("runs/x", "me/it", {"private": private, "dry_run": True})]
    calls.clear()
    assert invoke(monkeypatch, "push", "runs/x", "--repo", "me/it", "--yes", *options) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Sent: https://there"
    assert calls[1] == ("runs/x", "me/it", {"private": private})


@pytest.mark.parametrize(("options", "score"), [((), False), (("--score",), True)])
def test_align_scores_and_prints_json_only_where_asked(
    options: tuple[str, ...], score: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = recorded(monkeypatch, "align", [])
    assert invoke(monkeypatch, "align", "text", "p", "s", *options) == 0
    assert calls == [("text", "p", "s", {"score": score})]
    assert capsys.readouterr().out.split() == ["pivot", "source"]
    assert invoke(monkeypatch, "align", "text", "p", "s", "--json") == 0
    assert capsys.readouterr().out == "[]\n"


def test_the_version_is_printed_and_no_command_means_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fusion_ray import __version__

    assert invoke(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"fusion-ray {__version__}\n"
    assert invoke(monkeypatch) in (0, 2)
    assert "Usage" in (shown := capsys.readouterr().out) and "install-completion" not in shown


def test_an_interrupted_command_says_that_it_goes_on_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    assert invoke(monkeypatch) == 130
    assert capsys.readouterr().err.startswith("Stopped. What was finished is kept")


# --- inspect -------------------------------------------------------------------------------------------------------


def token(text: str, turn: int | None = None, *, end: bool = False) -> InspectedToken:
    return InspectedToken(0, text, turn is not None, turn, end, float(turn is not None))


TOKENS = [token("Q\n"), token("a", 0), token("b", 0), token("E", 0, end=True), token("Q"), token("c", 1), token("d", 2)]
USED = InspectedRow("one", "math", None, [], [], 0, TOKENS, None)
CUT = InspectedRow("t\nwo", None, None, [], ["tools", "\x1b"], 1_234, TOKENS[4:], None)
REFUSED = InspectedRow("x" * 201, None, "no\x1b answer", [], [], 0, [], None)


def inspected(monkeypatch: pytest.MonkeyPatch, *rows: api.Inspection, terminal: bool = False) -> str:
    recorded(monkeypatch, "inspect", list(rows))
    out = Console(file=io.StringIO(), width=70, highlight=False, force_terminal=terminal)
    monkeypatch.setattr(inspecting, "out", out)
    assert invoke(monkeypatch, "inspect", "model", "chats.jsonl") == 0
    return out.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_rows_are_drawn_with_answers_in_brackets_and_what_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (api.Inspection(USED), api.Inspection(CUT, problem="not\x1b aligned"), api.Inspection(REFUSED))
    assert [line.rstrip() for line in inspected(monkeypatch, *rows).splitlines()] == [
        "one  math",
        "Q",
        "⟦a|b|E⟧Q⟦c⟧⟦d⟧",
        "",
        "t\\nwo",
        "not read: tools, \\x1b",
        "Q⟦c⟧⟦d⟧",
        "cut: 1,234 more tokens are beyond the longest length",
        "the source: not\\x1b aligned",
        "",
        "x" * 200,
        "refused: no\\x1b answer",
        "",
        "2 of 3 rows usable, 7 of their 10 tokens are answer: ⟦tok|en|s⟧",
    ]
    (line, *_) = inspected(monkeypatch, api.Inspection(USED._replace(tokens=TOKENS[:1]))).splitlines()[1:]
    assert line == "Q", "context has no brackets"


def test_groups_of_a_source_stand_below_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    text = inspected(monkeypatch, api.Inspection(USED, groups=[]))
    assert [line.rstrip() for line in text.splitlines()][3:6] == ["pivot", "source", ""]


def test_on_a_terminal_answers_have_two_colours_in_turn_and_no_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspecting, "out", SimpleNamespace(is_terminal=True))
    drawn = inspecting._draw_tokens(TOKENS)
    assert drawn.plain == "Q\nabEQcd"
    assert [(drawn.plain[span.start : span.end], str(span.style)) for span in drawn.spans] == [
        ("Q\n", "dim"),
        ("a", "black on bright_green"),
        ("b", "black on green"),
        ("E", "bold white on blue"),
        ("Q", "dim"),
        ("c", "black on bright_green"),
        ("d", "black on green"),
    ]
    legend = " ".join(inspected(monkeypatch, api.Inspection(USED), terminal=True).splitlines()[-2:])
    assert "⟦" not in legend and "end of turn" in legend and "context" in legend


@pytest.mark.parametrize(
    "options", [("--row", "1", "--id", "a"), ("--row", "-1"), ("--rows", "0"), ("--max-length", "0")]
)
def test_what_inspect_cannot_use_is_refused(options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, "inspect", [])
    assert invoke(monkeypatch, "inspect", "model", "chats.jsonl", *options) == 2 and calls == []


@pytest.mark.parametrize("options", [("--row", "0"), ("--id", "a"), ("--rows", "1"), ("--max-length", "1")])
def test_the_least_that_inspect_takes(options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, "inspect", [])
    assert invoke(monkeypatch, "inspect", "model", "chats.jsonl", *options, "--json") == 0 and len(calls) == 1


def test_inspect_prints_json_with_the_letters_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(monkeypatch, "inspect", [api.Inspection(REFUSED._replace(id="ä"))])
    assert invoke(monkeypatch, "inspect", "model", "chats.jsonl", "--json") == 0
    assert capsys.readouterr().out.startswith('{\n "rows": [\n  {\n   "id": "ä",\n')
