"""Training a small policy from demonstrations."""
