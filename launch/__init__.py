"""Wiring: the command line, the process table and the programs it starts.

Only this package may import all others.
"""

from trimvla.runtime import quiet

quiet.switch_off()  # before any library is imported that would report to its maker
