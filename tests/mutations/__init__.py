"""Small faults in the kernels, and the proof that each makes a test fail."""
