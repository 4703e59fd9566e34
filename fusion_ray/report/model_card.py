"""Scores for the merged model's card, the README that the Hub shows to whoever downloads it."""

import re
from collections.abc import Mapping
from typing import Any

from fusion_ray.report.statistics.rates import OVERALL

HEADING = "## Held-out bits per byte"
_SECTION = re.compile(rf"^{HEADING}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_MOST_DOMAINS = 8


def add_scores(card: str, report: Mapping[str, Any]) -> str:
    """Put the scores before the card's configuration, or in place of the scores of an earlier report.

    Args:
        card: Text of README.md.
        report: The content of report.json.
    """
    section = render_scores(report)
    without = _SECTION.sub("", card)
    before, heading, after = without.partition("## Configuration")
    return f"{before.rstrip()}\n\n{section}\n{heading}{after}" if heading else f"{without.rstrip()}\n\n{section}"


def render_scores(report: Mapping[str, Any]) -> str:
    """The section as Markdown: a table by model and domain, the verdict, and how it was measured."""
    rates = report["bits_per_byte"]
    sizes = report["heldout"]["bytes_by_domain"]
    domains = sorted(sorted(sizes, key=lambda domain: -sizes[domain])[:_MOST_DOMAINS])
    lines = [["model", *domains, OVERALL], ["---", *["---:"] * (len(domains) + 1)]]
    lines += [[model, *(f"{found[d]:.3f}" for d in [*domains, OVERALL])] for model, found in rates.items()]
    table = "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
    heldout = report["heldout"]
    return (
        f"{HEADING}\n\n{table}\n\n{_cell(report['verdict']['text'])}\n\n"
        f"{heldout['documents']:,} documents, {heldout['bytes']:,} bytes of answers held out of the fine-tuning; "
        "lower is better; overall is the mean of the domains. Intervals: bootstrap over documents, "
        f"{report['bootstrap']:,} draws.\n"
    )


def _cell(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text) if set(text) - set("-:") else text
