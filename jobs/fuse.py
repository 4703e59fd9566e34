"""Run a whole recipe as a Ray job; submitting it again goes on where it stopped.

    ray job submit --working-dir . -- python jobs/fuse.py jobs/recipes/demo.yaml --set targets.workers=8

Reads:  the recipe, its models and corpus (paths as the cluster's nodes see them; shared or remote storage).
Writes: runs/<recipe>/ with one folder for each stage.
Needs:  as many CPUs and GPUs at once as the largest request of the recipe (`gpus_per_actor`, `workers *
        gpus_per_worker`); the driver itself needs no GPU.
Time:   the sum of the stages; `python jobs/<stage>.py RECIPE` runs up to one of them.

Exit codes are those of the command line: 2 recipe, 3 artifact, 4 method, 5 engine, 6 cluster.
"""

import argparse
import json
import sys
import time

from fusion_ray import pipeline
from fusion_ray.errors import FusionRayError
from fusion_ray.progress import Progress
from fusion_ray.recipe import load_recipe

_QUIET_S = 30.0


class JsonLines:
    """Writes progress as JSON lines: the beginning and end of each artifact, and now and then between."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.told: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        """Write one line, unless the last one of this artifact is fresh."""
        now = time.monotonic()
        finished = progress.done >= progress.total
        if not finished and now - self.told.get(progress.what, -_QUIET_S) < _QUIET_S:
            return
        self.told[progress.what] = now
        line = {"time": time.time(), "run": self.run, "artifact": progress.what, "done": progress.done}
        print(json.dumps(line | {"total": progress.total, "detail": progress.detail}), flush=True)


def main(until: str = "report") -> None:
    """Run the recipe named on the command line up to a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()
    try:
        recipe = load_recipe(arguments.recipe, tuple(arguments.overrides))
        pipeline.run(recipe, JsonLines(recipe.name), until=until)
    except FusionRayError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
