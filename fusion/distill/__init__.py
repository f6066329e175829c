"""Training-time fusion: FuseChat's distillation and merging, Bohdi's choice of training questions.

Pure functions on arrays: `token_alignment` and `targets` lead from several models' outputs to a loss, `sce` and
`folders` merge fine-tuned checkpoints into one, `swblrt` tests whether a rate has changed. `training` is the loop
that all ways to distill share, `fusechat` and `bohdi` are two of these. What they yield is an ordinary checkpoint,
served as a single model.
"""
