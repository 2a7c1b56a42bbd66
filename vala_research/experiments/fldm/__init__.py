"""Experiments of FLDM."""
