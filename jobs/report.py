"""Measure the held-out bits per byte of every model and write the report.

Runs the stages before it where they are not done.

    ray job submit --working-dir . -- python jobs/report.py jobs/recipes/demo.yaml

Reads:  everything before it.
Writes: 6_report/.
Needs:  as `distributions`, for the new models.
"""

from fuse import main

if __name__ == "__main__":
    main(until="report")
