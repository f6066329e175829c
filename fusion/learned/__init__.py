"""Learned weights: a small model that weighs the members by what is known before the first token."""
