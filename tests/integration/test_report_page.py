"""The report's page in a real browser: it draws, reacts, fits a phone, and nothing hostile in it comes alive."""

from pathlib import Path

import pytest
from toys.chromium import Page, drive, find_chromium
from toys.report import EVIL, make_report

from fusion_ray.report.page import render_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render_page(make_report()), encoding="utf-8")
    return path


def test_the_page_draws_every_plot_and_asks_the_network_for_nothing(file: Path, tmp_path: Path) -> None:
    async def look(page: Page) -> None:
        places = await page.ask("document.querySelectorAll('.figure').length")
        assert places >= 8
        assert await page.ask("document.querySelectorAll('.figure .main-svg').length") >= places

    page = drive(file, tmp_path / "profile", look)
    assert page.complaints == []
    assert all(url.startswith(("file://", "data:", "blob:")) for url in page.requests), page.requests


def test_hostile_text_is_shown_and_never_run(file: Path, tmp_path: Path) -> None:
    async def look(page: Page) -> None:
        assert await page.ask("document.title") == f"{EVIL}: fusion report"
        assert await page.ask("document.querySelector('h1').textContent") == EVIL
        assert await page.ask("document.querySelectorAll('img, iframe, object').length") == 0
        assert await page.ask("document.querySelector('#view-groups i').textContent") == EVIL
        assert "{{ 7 * 7 }}" in await page.ask("document.querySelector('.sample').textContent")

    assert drive(file, tmp_path / "profile", look).complaints == []


def test_the_alignment_viewer_answers_a_click(tmp_path: Path) -> None:
    report = make_report()
    token = {"real": 0.25, "top": [["cat", 0.25, True], ["dog", 0.1, False]]}
    second = {"pivot": [token | {"text": "cat"}], "source": [token | {"text": "cat"}]}
    report["views"][0]["groups"].append(second)
    file = tmp_path / "report.html"
    file.write_text(render_page(report), encoding="utf-8")

    async def look(page: Page) -> None:
        before = await page.ask("document.querySelector('#view-detail').textContent")
        assert "dog" not in before
        await page.click("#view-groups button:nth-child(2)")
        assert "dog" in await page.ask("document.querySelector('#view-detail').textContent")
        assert await page.ask("document.querySelectorAll('#view-groups [aria-selected=true]').length") == 1
        heads = await page.ask("[...document.querySelectorAll('#view-detail h4')].map((head) => head.textContent)")
        assert heads == ["math says", "pivot says"]
        await page.click("#view-groups button:nth-child(1)")
        assert "projected onto the pivot's tokens 10.0 %" in await page.ask(
            "document.querySelector('#view-detail p').textContent"
        )

    assert drive(file, tmp_path / "profile", look).complaints == []


def test_the_page_fits_a_phone_and_follows_the_dark_mode(file: Path, tmp_path: Path) -> None:
    async def look(page: Page) -> None:
        assert await page.ask("document.documentElement.scrollWidth") <= 390
        font = "document.querySelector('#fig-rates')._fullLayout.font.color"
        light = await page.ask(font)
        await page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        background = await page.ask("getComputedStyle(document.body).backgroundColor")
        assert background == "rgb(18, 21, 27)"
        assert await page.ask(font) != light

    assert drive(file, tmp_path / "profile", look, width=390).complaints == []
