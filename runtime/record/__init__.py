"""Recording, replay and metrics of a running system."""
