"""The plan of kills: the same for a seed, every kind in every stage, and stages told apart by what is on disk."""

from pathlib import Path

from chaos import KINDS, LATEST_S, STAGES, current_stage, plan_kills, unfinished_file


def test_a_seed_gives_one_plan_and_thirty_kills_are_every_kind_in_every_stage() -> None:
    assert plan_kills(50, seed=7) == plan_kills(50, seed=7) != plan_kills(50, seed=8)
    assert {(kill.kind, kill.stage) for kill in plan_kills(30, seed=1)} == {(k, s) for k in KINDS for s in STAGES}
    assert all(0 <= kill.delay_s <= LATEST_S[kill.stage] for kill in plan_kills(50, seed=7))


def test_the_stage_of_a_run_is_read_off_its_folders(tmp_path: Path) -> None:
    assert current_stage(tmp_path) == "corpus"
    (tmp_path / "toy" / "1_corpus").mkdir(parents=True)
    assert current_stage(tmp_path) == "corpus"
    (tmp_path / "toy" / "1_corpus" / "MANIFEST.json").write_text("{}")
    assert current_stage(tmp_path) == "distributions"
    (tmp_path / "toy" / "4_targets").mkdir()
    assert current_stage(tmp_path) == "targets"
    assert unfinished_file(tmp_path) is None
    (tmp_path / "toy" / "4_targets" / ".model.safetensors.12.tmp").write_text("")
    assert unfinished_file(tmp_path) == ".model.safetensors.12.tmp"
