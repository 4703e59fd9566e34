"""Express a source's distributions over the pivot's tokens."""
