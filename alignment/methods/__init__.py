"""Vocabulary map methods: one way to make a map per file, named in the registry."""
