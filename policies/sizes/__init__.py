"""Sizes of a policy: parameters, operations, memory and time, without weights or torch."""
