"""A recording's policy calls made again: its bundles, what has changed since, the result."""
