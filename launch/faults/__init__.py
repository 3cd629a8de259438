"""Fault injection: the table, its actions, the safety monitor."""
