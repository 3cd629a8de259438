"""An observation -> what the network takes: images, prompt and state.

Knows no network and no socket.
"""
