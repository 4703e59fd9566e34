"""Score the corpus with the pivot and every source.

Runs the stages before it where they are not done.

    ray job submit --working-dir . -- python jobs/distributions.py jobs/recipes/demo.yaml

Reads:  1_corpus/ and the models.
Writes: 2_distributions/<model>/.
Needs:  `gpus_per_actor` GPUs for each of `actors` actors, for each model.
"""

from fuse import main

if __name__ == "__main__":
    main(until="distributions")
