"""What `trimvla eval` and `trimvla report` show."""
