"""SmolVLA in LeRobot's files: opened, and written."""
