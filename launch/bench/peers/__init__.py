"""What a user would run instead of a bundle, measured in the same turns."""
