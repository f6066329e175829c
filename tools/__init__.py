"""Tools of development: benchmarks, GPU runs, pictures."""
