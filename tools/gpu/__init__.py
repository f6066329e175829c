"""Runs on a GPU that is lent for some minutes: one script each, over random parameters and its own packages."""
