"""Reference checks of DB-CogACT."""
