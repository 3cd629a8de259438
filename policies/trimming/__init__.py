"""Trimming: from calibration frames to a plan, and a policy under a plan."""
