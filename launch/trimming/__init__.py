"""What `trimvla trim` does: options, measuring, the plan's picture and table."""
