"""Rows, episodes and report of an ablation."""
