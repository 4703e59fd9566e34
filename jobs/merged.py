"""Merge the targets into one model.

Runs the stages before it where they are not done.

    ray job submit --working-dir . -- python jobs/merged.py jobs/recipes/demo.yaml

Reads:  the pivot and 4_targets/.
Writes: 5_merged/.
Needs:  CPUs only, a few hundred MB of memory a task.
"""

from fuse import main

if __name__ == "__main__":
    main(until="merged")
