"""Experiments of editing without inversion, and of flow models."""
