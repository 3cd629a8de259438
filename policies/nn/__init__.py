"""Blocks that policies share, as torch modules."""
