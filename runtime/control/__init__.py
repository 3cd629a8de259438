"""Control: from chunks to commands at a fixed rate, through the gate."""
