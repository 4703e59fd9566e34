"""The names in a run's folder: a stage's folder is its number and its word.

runs/mine/1_corpus/  2_distributions/  2_answers/  3_fused/  4_targets/  5_merged/  6_report/
"""

from fusion_ray.storage.filesystem import exists, join

# In this order; answers, if a recipe asks for them, stand between distributions and fused.
STAGES = ("corpus", "distributions", "answers", "fused", "targets", "merged", "report")
_NUMBERS = {"corpus": 1, "distributions": 2, "answers": 2, "fused": 3, "targets": 4, "merged": 5, "report": 6}

MANIFEST = "MANIFEST.json"  # Of every artifact; written last, so that a folder without one is not finished.
METRICS = "metrics.jsonl"  # Of a target: one object for each update.
WEIGHTS = "weights.json"  # Of a merged model: the weight of every tensor and target.
REPORT = "report.json"
PAGE = "report.html"
DOCUMENTS = "documents.parquet"  # Of a report: every held-out document's nll under every model.


def stage_folder(run: str, stage: str, *parts: str) -> str:
    """The folder of a stage, or of one artifact in it.

    >>> stage_folder("runs/mine", "targets", "math")
    'runs/mine/4_targets/math'
    """
    return join(run, f"{_NUMBERS[stage]}_{stage}", *parts)


def find_merged(folder: str) -> str:
    """The merged model of a run, where this is a run's folder that has one; else the folder as it is."""
    merged = stage_folder(folder, "merged")
    return merged if exists(merged) else folder
