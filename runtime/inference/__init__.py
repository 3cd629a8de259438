"""Inference: observation in, action chunk out, and the process that does so."""
