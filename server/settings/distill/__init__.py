"""Files of `tutti distill`: their shape, and from such a file to a distillation."""
