"""Recovery: a trimmed policy's weights, trained anew against the dense policy, as a patch."""
