"""One tokenizer: text, ids and bytes."""
