"""Evaluation: exact match and chrF of each served name, over the path that a client takes."""
