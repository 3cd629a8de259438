"""A whole robot's load on this machine: the system, its figures and their report."""
