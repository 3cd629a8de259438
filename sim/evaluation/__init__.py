"""Episodes, outcomes and statistics."""
