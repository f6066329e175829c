"""Prompts: reading them, scoring them, and the weights that come of it."""
