"""Where an export's policy, options and frames come from."""
