"""Heavy model libraries behind small classes that run without Ray."""
