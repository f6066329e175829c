"""Assembly: members, maps and ensembles from plain specifications, for the server and for distillation."""
