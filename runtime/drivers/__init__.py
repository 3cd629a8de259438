"""A robot's own driver: what it implements, and the loop that obeys commands and holds for it."""
