"""Figures of a demonstration, and its card."""
