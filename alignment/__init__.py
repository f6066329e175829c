"""Vocabularies: surface bytes, spelling of text as tokens, maps from one vocabulary to another."""
