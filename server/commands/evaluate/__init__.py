"""How often each served name answers right, measured over the path that a client takes."""
