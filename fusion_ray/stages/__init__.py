"""The stages, one file each; no stage imports another."""
