"""`tutti distill`: training-time fusion from a file, stage by stage."""
