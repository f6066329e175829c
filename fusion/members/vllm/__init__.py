"""The vLLM engine: sequences as resumable requests of an engine core."""
