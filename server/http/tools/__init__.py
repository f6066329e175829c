"""Tool calls: how models write them, how they are read back, and how a history that holds them is told."""
