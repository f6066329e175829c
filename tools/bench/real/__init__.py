"""Real models: how well their fusion predicts real texts, in bits per byte, by pivot, alignment and weighting."""
