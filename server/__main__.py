"""`python -m server` is the `tutti` command."""

from server.cli import main

main()
