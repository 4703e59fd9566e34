"""Let every source answer the training chats that it knows best anew, and score what it said.

Nothing more than distributions where the recipe has no section `answers`. Runs the stages before it where they are not
done.

    ray job submit --working-dir . -- python jobs/answers.py mine.yaml --set answers.per_chat=2

Reads:  1_corpus/, 2_distributions/ and the models.
Writes: 2_answers/<source>/, 2_distributions/answers/<source>/.
Needs:  what jobs/distributions.py needs.
"""

from fuse import main

if __name__ == "__main__":
    main(until="answers")
