"""LeRobot data sets on disk: read for calibration and evaluation, written from recordings."""
