"""Align every source to the pivot and choose who teaches.

Runs the stages before it where they are not done.

    ray job submit --working-dir . -- python jobs/fused.py jobs/recipes/demo.yaml

Reads:  1_corpus/, 2_distributions/ and the tokenizers.
Writes: 3_fused/<source>/.
Needs:  CPUs only, `fused.cpus_per_task` a shard.
"""

from fuse import main

if __name__ == "__main__":
    main(until="fused")
