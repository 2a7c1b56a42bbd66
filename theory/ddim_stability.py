"""Errors of a denoising path stay within closed forms of any schedule: C.6, C.8, C.9, DDIM."""
