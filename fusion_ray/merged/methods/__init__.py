"""Merge methods: pure functions on blocks of one tensor of several models; `naive.py` is the oracle of each."""
