"""What `trimvla cost` counts: whose sizes, in which precision, on which boards."""
