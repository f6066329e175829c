"""Tool calls: formats for writing them, a parser for reading them, their rendering in a history."""
