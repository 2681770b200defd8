"""What the build asks before any package is there, and what only developers of kernels run."""
