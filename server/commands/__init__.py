"""Commands: what each `tutti` command does."""
