"""Wiring: the command line, the process table and the programs it starts. Only this package may import all others."""
