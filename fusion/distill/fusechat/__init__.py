"""FuseChat (arXiv 2408.07990) as a pipeline: source models in, one served checkpoint out.

Stages from files to files, each of which can be killed and started again: `represent` (every model reads the texts
once), `align` (their distributions in the base's tokens), `train` (a target for each pair), `merge` (one of them
all). `run` ties them; evaluating what comes out needs a server and is done there.
"""
