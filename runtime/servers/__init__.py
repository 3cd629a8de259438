"""Servers: a policy behind the protocols of other people's clients."""
