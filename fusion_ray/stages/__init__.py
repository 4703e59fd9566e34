"""The six stages, one file each; no stage imports another."""
