"""Comparison of SmolVLA with arrays that LeRobot's classes gave."""
