"""Pure functions on arrays: what the papers compute, and nothing else. No I/O, no recipe objects, no Ray."""
