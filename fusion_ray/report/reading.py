"""Read the reports of finished runs, and compare two of them."""

import io
import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from fusion_ray.errors import CorruptArtifactError, MissingArtifactError
from fusion_ray.report.statistics.rates import Scores
from fusion_ray.storage.filesystem import exists, join, read_bytes
from fusion_ray.storage.run_folder import DOCUMENTS, MANIFEST, REPORT, stage_folder


def read_report(run_folder: str) -> dict[str, Any]:
    """Read the report of a finished run.

    Args:
        run_folder: The run's folder, such as `runs/demo`, or its `6_report` folder.

    Raises:
        MissingArtifactError: The run has no finished report.
        CorruptArtifactError: report.json is not a report.
    """
    uri = join(_report_folder(run_folder), REPORT)
    try:
        report = json.loads(read_bytes(uri))
        if "bits_per_byte" not in report or "verdict" not in report:
            raise ValueError("no bits_per_byte and verdict in it")
    except (ValueError, TypeError) as error:
        raise CorruptArtifactError(f"{uri}: not a report ({error}). Delete it and run the recipe again.") from error
    return dict(report)


def _report_folder(run_folder: str) -> str:
    for folder in (stage_folder(run_folder, "report"), run_folder):
        if exists(join(folder, REPORT)) and exists(join(folder, MANIFEST)):
            return folder
    raise MissingArtifactError(
        f"{run_folder}: no finished report there. Expected a run's folder such as runs/demo; `fusion-ray run` makes it."
    )


def same_documents(runs: tuple[str, ...]) -> Scores | None:
    """Both merged models' scores of the held-out documents, or None where the runs hold out others."""
    tables = [pq.read_table(io.BytesIO(read_bytes(join(_report_folder(run), DOCUMENTS)))).sort_by("id") for run in runs]
    if any(not tables[0][column].equals(tables[1][column]) for column in ("id", "domain", "n_bytes")):
        return None
    nll = np.array([table["merged"].to_numpy() for table in tables])
    domains = np.array(tables[0]["domain"].to_pylist(), dtype=object)
    return Scores(("first", "second"), nll, tables[0]["n_bytes"].to_numpy(), domains)
