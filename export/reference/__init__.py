"""Comparison with stored arrays of the public code."""
