"""Restate, check and attack the claims of the papers: one theorem group per file.

`python -m theory` prints the table; the proofs are in theory/README.md.
"""
