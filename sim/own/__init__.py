"""Environments of the user's own, and any registered with gymnasium."""
