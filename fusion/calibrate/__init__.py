"""Calibration: measure on questions whether fusing pays, and with which pivot, alignment and weights."""
