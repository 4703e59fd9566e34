"""Run mergekit on configs, one process for all; to be started with the python of bench/mergekit_env.sh.

Usage: PYTHON bench/run_mergekit.py CONFIG OUT [CONFIG OUT ...]; a JSON line per merge with its seconds.
"""

import json
import logging
import resource
import sys
import time
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def main() -> None:
    """Merge what the command line names."""
    logging.disable(logging.WARNING)
    print(json.dumps({"ready": True}), flush=True)
    pairs = list(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    for config, out in pairs:
        started = time.perf_counter()
        error = None
        try:
            parsed = MergeConfiguration.model_validate(yaml.safe_load(Path(config).read_text()))
            run_merge(parsed, out, MergeOptions(quiet=True, device="cpu", random_seed=0))
        except Exception as failure:  # One merge that mergekit cannot do must not hide the others.
            error = f"{type(failure).__name__}: {failure}"
        usage = resource.getrusage(resource.RUSAGE_SELF)
        report = {"config": config, "seconds": time.perf_counter() - started, "cpu": usage.ru_utime + usage.ru_stime}
        print(json.dumps(report | {"peak_kib": usage.ru_maxrss, "error": error}), flush=True)


main()
