"""The loop that moves every sequence, and its bookkeeping."""
