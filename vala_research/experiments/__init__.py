"""One file per notebook, one room per paper."""
