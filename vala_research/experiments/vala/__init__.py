"""Experiments of VALA."""
