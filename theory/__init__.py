"""What the papers claim, restated, checked and attacked: one theorem group per file.

`python -m theory` prints the table; the proofs are in theory/README.md.
"""
