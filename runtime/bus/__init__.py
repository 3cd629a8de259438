"""The bus: topics, messages, their bytes, and the sockets that carry them."""
