"""The cache of keys and values, and which rows of it belong to whom."""
