"""What the doctor advises, by how much memory and disk there is."""

import os
import shutil
from types import SimpleNamespace

import pytest

from fusion_ray.cli import doctor


@pytest.mark.parametrize(("gib", "fine"), [(4.5, True), (4.0, False), (0.5, False)])
def test_less_than_the_demo_needs_is_told(gib: float, fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PAGE_SIZE": 4096, "SC_AVPHYS_PAGES": int(gib * 2**30) // 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    found = doctor._memory()
    assert (found.found, found.fine, bool(found.advice)) == (f"{gib:.1f} GiB", fine, not fine)


@pytest.mark.parametrize(("gib", "disk", "shared"), [(20, True, True), (10, False, True), (1, False, False)])
def test_little_room_on_disk_or_in_shared_memory_is_told(
    gib: int, disk: bool, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=gib * 2**30))
    assert (doctor._disk().fine, doctor._shared_memory().fine) == (disk, shared)
    assert (bool(doctor._disk().advice), bool(doctor._shared_memory().advice)) == (not disk, not shared)


def test_a_missing_package_is_fatal_and_a_version_has_three_parts() -> None:
    missing = doctor._package("no-such-package-of-ours")
    assert missing.fatal and not missing.fine and "make setup" in missing.advice
    python = doctor._python()
    assert python.fine and not python.fatal and python.found.count(".") == 2
