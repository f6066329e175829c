"""Benchmarks. `python -m tools.bench` runs them all and prints one JSON object as its last line."""
