"""The reports of finished runs as objects, and what changed from one run to another."""

import html
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fusion_ray.errors import CorruptArtifactError, MissingArtifactError
from fusion_ray.report.statistics.bootstrap import Difference, compare_models, resample_rates
from fusion_ray.report.statistics.rates import Scores, measure_rates
from fusion_ray.storage.filesystem import exists, join, read_bytes
from fusion_ray.storage.run_folder import DOCUMENTS, MANIFEST, PAGE, REPORT, stage_folder


@dataclass(frozen=True)
class RunReport:
    """What a finished run says: did fusion help, by how much, and why.

    Attributes:
        folder: URI of the report's folder.
        content: Everything, as in report.json (docs/report.md lists it).
    """

    folder: str
    content: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, run: str) -> "RunReport":
        """Read the report of a finished run.

        Args:
            run: The run's folder, such as `runs/demo`, or the report's folder in it.

        Raises:
            MissingArtifactError: The run has no finished report.
            CorruptArtifactError: report.json is not a report.
        """
        folder = _report_folder(run)
        uri = join(folder, REPORT)
        try:
            content = json.loads(read_bytes(uri))
            if "bits_per_byte" not in content or "verdict" not in content:
                raise ValueError("no bits_per_byte and verdict in it")
        except (ValueError, TypeError) as error:
            raise CorruptArtifactError(f"{uri}: not a report ({error}). Delete it and run the recipe again.") from error
        return cls(folder, dict(content))

    @property
    def verdict(self) -> str:
        """Whether fusion helped, in words."""
        return str(self.content["verdict"]["text"])

    @property
    def helped(self) -> bool | None:
        """Whether fusion helped; None where that cannot be told."""
        helped: bool | None = self.content["verdict"]["helped"]
        return helped

    @property
    def bits_per_byte(self) -> dict[str, dict[str, float]]:
        """Held-out bits per byte by model, then by domain and `overall`; lower is better."""
        return dict(self.content["bits_per_byte"])

    @property
    def merged(self) -> str:
        """Folder of the merged model."""
        return stage_folder(self._run, "merged")

    @property
    def page(self) -> str:
        """The report for a browser."""
        return join(self.folder, PAGE)

    @property
    def _run(self) -> str:
        return self.folder.rstrip("/").rpartition("/")[0] or "."

    def documents(self) -> pa.Table:
        """Every held-out document: id, domain, bytes, and its nll in nats under every model."""
        return pq.read_table(io.BytesIO(read_bytes(join(self.folder, DOCUMENTS)))).sort_by("id")

    def __str__(self) -> str:
        return self.verdict

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, and bits per byte by model and domain."""
        domains = list(self.bits_per_byte["pivot"])
        head = "".join(f"<th>{html.escape(domain)}</th>" for domain in ["bits per byte, held out", *domains])
        rows = "".join(
            f"<tr><td>{html.escape(model)}</td>" + "".join(f"<td>{rates[domain]:.4f}</td>" for domain in domains)
            for model, rates in self.bits_per_byte.items()
        )
        return f"<p>{html.escape(self.verdict)}</p><table><tr>{head}</tr>{rows}</table>"


def _report_folder(run: str) -> str:
    for folder in (stage_folder(run, "report"), run):
        if exists(join(folder, REPORT)) and exists(join(folder, MANIFEST)):
            return folder
    raise MissingArtifactError(
        f"{run}: no finished report there. Expected a run's folder such as runs/demo; `fusion-ray run` makes it."
    )


def compare_merged(first: RunReport, second: RunReport) -> dict[str, Difference] | None:
    """By domain, the second run's merged model less the first's in bits per byte, with paired intervals.

    Returns:
        None where the runs hold out different documents: their numbers do not compare.
    """
    tables = [report.documents() for report in (first, second)]
    if any(not tables[0][column].equals(tables[1][column]) for column in ("id", "domain", "n_bytes")):
        return None
    nll = np.array([table["merged"].to_numpy() for table in tables])
    domains = np.array(tables[0]["domain"].to_pylist(), dtype=object)
    scores = Scores(("first", "second"), nll, tables[0]["n_bytes"].to_numpy(), domains)
    resamples = resample_rates(scores, first.content["bootstrap"], first.content["seed"])
    rates = measure_rates(scores)
    return {
        domain: compare_models(resamples, "second", "first", domain, rates["second"][domain] - rates["first"][domain])
        for domain in rates["first"]
    }
