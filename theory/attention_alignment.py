"""Attention outputs differ by what queries and tokens differ: C.10 to C.15."""
