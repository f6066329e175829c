"""Learning a map from embedding tables: anchors, one space for two tables, nearest neighbours."""
