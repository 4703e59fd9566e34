"""Merge targets of one shape in parameter space; one method a file."""
