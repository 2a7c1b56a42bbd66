"""A bilateral filter moves an image by at most its bias and stretches differences: C.7."""
