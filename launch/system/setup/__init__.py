"""What a system consists of before it runs: the process table, a file's sections, programs."""
