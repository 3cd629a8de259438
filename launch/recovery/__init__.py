"""Recovery as users start it: frames, what a run is, its result."""
