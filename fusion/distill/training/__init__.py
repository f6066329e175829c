"""Training a checkpoint on conversations and targets, for every way to distill: texts, loop, folders, records."""
