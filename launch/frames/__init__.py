"""Where calibration frames come from: demonstrations, play, recordings, data sets."""
