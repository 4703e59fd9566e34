"""Give the chats ids, domains, splits and shards.

Runs the stages before it where they are not done.

    ray job submit --working-dir . -- python jobs/corpus.py jobs/recipes/demo.yaml

Reads:  corpus.path.
Writes: runs/<recipe>/1_corpus/.
Needs:  CPUs only, about one a file at a time.
"""

from fuse import main

if __name__ == "__main__":
    main(until="corpus")
