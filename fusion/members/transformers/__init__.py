"""The transformers engine: continuous batching over any causal language model."""
