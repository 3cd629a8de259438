"""How a robot is made to move: figures from recordings, and their tables."""
