"""The embedded tabletop simulator, its expert and its demonstrations."""
