"""One policy call, opened up: where it comes from, what ran in it, the result."""
