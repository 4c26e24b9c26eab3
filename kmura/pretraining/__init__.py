"""Encoders that are trained without labels, and their probes."""
