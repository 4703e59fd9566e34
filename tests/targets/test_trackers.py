"""Curves reach TensorBoard and go on after a pause; a tracker that is not installed is named."""

import sys
from pathlib import Path

import pytest
from toys.training import RUN, curve_line

from fusion_ray.errors import EngineError
from fusion_ray.targets.trackers import curve_values, open_trackers


def scalars(folder: Path, name: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(f"train/{name}")}


def test_tensorboard_shows_every_update_once_also_those_before_a_pause(tmp_path: Path) -> None:
    (first,) = open_trackers((), RUN, tmp_path, [])
    for step in (1, 2, 3):
        first.log(step, curve_values(curve_line(step)))
    first.close()  # Killed after update 3; its checkpoint knows 2.
    (second,) = open_trackers((), RUN, tmp_path, [curve_line(1), curve_line(2, 1.5)])
    for step in (3, 4):
        second.log(step, curve_values(curve_line(step)))
    second.close()
    assert scalars(tmp_path, "loss") == {1: 2.0, 2: 1.0, 3: 0.0, 4: -1.0}
    assert scalars(tmp_path, "bits_per_byte") == {2: 1.5}


def test_a_tracker_that_is_not_installed_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(EngineError, match=r"wandb is not installed.*pip install 'fusion-ray\[trackers\]'"):
        open_trackers(("wandb",), RUN, tmp_path, [])
