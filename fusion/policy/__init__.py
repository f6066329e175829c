"""Policies: which members a sequence asks in a round, and for how many tokens."""
