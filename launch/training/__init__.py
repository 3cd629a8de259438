"""Training presets, and training on a borrowed GPU."""
