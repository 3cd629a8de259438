"""The bundle: its manifest and plan, as typed data."""
