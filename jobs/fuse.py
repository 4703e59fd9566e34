"""Run a whole recipe as a Ray job; submitting it again goes on where it stopped.

    ray job submit --working-dir . -- python jobs/fuse.py jobs/recipes/demo.yaml --set targets.workers=8

Reads:  the recipe, its models and corpus (paths as the cluster's nodes see them; shared or remote storage).
Writes: runs/<recipe>/ with one folder for each stage.
Needs:  as many CPUs and GPUs at once as the largest request of the recipe (`gpus_per_actor`, `workers *
        gpus_per_worker`); the driver itself needs no GPU. `fusion-ray plan RECIPE` adds it up.
Time:   the sum of the stages; `--until WORD` runs up to one of them.

Prints JSON lines: `time`, `run`, `event`, and with progress `stage`, `artifact`, `shard`, `done`, `total`, `detail`.
Exit codes are those of the command line: 2 recipe, 3 artifact, 4 method, 5 engine, 6 cluster; 130 and 143 when a signal
stopped it.
"""

import argparse
import json
import sys
import time
from typing import Any

from fusion_ray.errors import FusionRayError
from fusion_ray.pipeline.run import run
from fusion_ray.progress import Progress
from fusion_ray.recipe import load_recipe
from fusion_ray.stopping import stop_on_signals
from fusion_ray.storage.run_folder import STAGES

_QUIET_S = 30.0


class JsonLines:
    """Writes what happens as JSON lines: every finished shard and artifact, and now and then what lies between."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.told: dict[str, float] = {}

    def write(self, event: str, **fields: Any) -> None:
        """Write one line."""
        line = {"time": round(time.time(), 3), "run": self.run, "event": event} | fields
        print(json.dumps(line), flush=True)

    def __call__(self, progress: Progress) -> None:
        """Write one line, unless nothing was finished and the last one of this artifact is fresh."""
        now = time.monotonic()
        finished = progress.done >= progress.total
        fresh = now - self.told.get(progress.what, -_QUIET_S) < _QUIET_S
        if fresh and not finished and not progress.shard:
            return
        self.told[progress.what] = now
        fields = {"stage": progress.what.split("/")[0], "artifact": progress.what, "shard": progress.shard or None}
        self.write("progress", **fields, done=progress.done, total=progress.total, detail=progress.detail)


def main() -> None:
    """Run the recipe named on the command line, up to a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--until", default="report", metavar="WORD", choices=STAGES, help="the last stage to run")
    arguments = parser.parse_args()
    until = arguments.until
    lines = JsonLines(arguments.recipe)
    stop_on_signals(lambda signal: lines.write("stopped", signal=signal, message="run again to go on from here"))
    try:
        recipe = load_recipe(arguments.recipe, tuple(arguments.overrides))
        lines.run = recipe.name
        lines.write("started", until=until, folder=recipe.folder)
        run(recipe, lines, until=until)
        lines.write("finished", until=until, folder=recipe.folder)
    except FusionRayError as error:
        lines.write("failed", error=type(error).__name__, exit_code=error.exit_code, message=str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
