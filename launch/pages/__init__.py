"""Pages that are made from code: the reference and the tree of files."""
