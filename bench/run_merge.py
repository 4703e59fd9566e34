"""Run our merge on one config in a process of its own, as bench/run_mergekit.py runs mergekit.

Usage: PYTHON bench/run_merge.py CONFIG OUT [CONFIG OUT ...]; a JSON line per merge with its seconds.
"""

import json
import os
import resource
import sys
import time

from fusion_ray.merged.from_yaml import merge_from_yaml


def main() -> None:
    """Merge what the command line names."""
    print(json.dumps({"ready": True}), flush=True)
    for config, out in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        started = time.perf_counter()
        merge_from_yaml(config, out, threads=len(os.sched_getaffinity(0)))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        report = {"config": config, "seconds": time.perf_counter() - started, "cpu": usage.ru_utime + usage.ru_stime}
        print(json.dumps(report | {"error": None}), flush=True)


main()
