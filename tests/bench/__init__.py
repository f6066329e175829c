"""Benchmarks. `python -m tests.bench` runs them all and prints one JSON object as its last line."""
