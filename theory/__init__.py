"""What the papers claim, restated, checked and attacked: one theorem group per file."""
