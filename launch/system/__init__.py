"""A running system: its processes, their supervisor and its clients."""
