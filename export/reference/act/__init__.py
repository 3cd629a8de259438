"""Comparison of ACT with arrays that LeRobot's classes gave."""
