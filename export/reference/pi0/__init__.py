"""Reference checks of the pi0 and pi0.5 families."""
