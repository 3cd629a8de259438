"""A robot and cameras that need no hardware, on the same topics as the real ones; rollouts and their statistics."""
