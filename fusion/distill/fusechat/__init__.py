"""FuseChat (arXiv 2408.07990) as a pipeline: source models in, one served checkpoint out.

Five stages, each a function from files to files that can be killed and started again: `represent` (every model reads
the texts once), `align` (their distributions in the base's tokens), `train` (a target for each pair), `merge` (one
checkpoint of them) and, outside this package as it needs a server, evaluating what came out. `run` ties them.
"""
