"""Which backend runs an op and why, and the only differentiation."""
