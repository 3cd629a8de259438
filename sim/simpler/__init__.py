"""SimplerEnv's WidowX tasks: twin and original."""
