"""Fine-tune the pivot into one target for each source, and the control arms.

Runs the stages before it where they are not done.

    ray job submit --working-dir . -- python jobs/targets.py jobs/recipes/demo.yaml

Reads:  3_fused/ and the pivot.
Writes: 4_targets/<name>/.
Needs:  `targets.workers` times `gpus_per_worker` GPUs at once for each target.
"""

from fuse import main

if __name__ == "__main__":
    main(until="targets")
