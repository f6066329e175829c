"""The demo ensemble: three small chat models, their tasks and the one command that trains them."""
