"""Action chunks: which row is due, and how one chunk follows another. Pure."""
