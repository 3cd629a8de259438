"""Wiring: the command line, the process table and the programs it starts. The only package that may import all others."""
