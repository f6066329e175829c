"""`tutti calibrate`: whether fusing pays on a file of questions, and with which configuration."""
