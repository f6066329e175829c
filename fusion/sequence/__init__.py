"""One generation in progress: its tokens, its text, its members."""
