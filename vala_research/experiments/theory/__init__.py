"""Experiments of the theory."""
