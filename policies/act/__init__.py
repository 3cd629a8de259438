"""ACT, as LeRobot has it: a ResNet, a transformer that reads its features and the robot's state,
and one decoder that gives a chunk of actions at once; no instruction, no noise.
"""
