"""Experiments of GE-Adapter."""
