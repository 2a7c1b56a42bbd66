"""Gradient descent on the features finds a global minimum of the temporal loss: C.4, C.5."""
