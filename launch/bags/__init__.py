"""Recordings as bags of ROS 2 and back: rosbag2 with MCAP, definitions included; no ROS needed."""
