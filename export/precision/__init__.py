"""A bundle's graphs in another precision."""
