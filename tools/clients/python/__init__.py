"""Clients for Python, one module each, run in an environment of their own."""
