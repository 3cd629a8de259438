"""Export of policies that are larger than memory."""
