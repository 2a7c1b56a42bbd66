"""Numbers and pictures: one function per reported number, one style per figure."""
