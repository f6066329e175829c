"""Hosts: where an engine runs (a thread of the server, a process, a Ray actor)."""
