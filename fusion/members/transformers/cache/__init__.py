"""The cache of keys and values, and the assignment of its positions to sequences."""
