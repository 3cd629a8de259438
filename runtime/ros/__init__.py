"""ROS 2: its messages as ours and ours as its, and a robot behind ROS topics as a driver."""
