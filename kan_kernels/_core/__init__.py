"""What everybody above may use; it imports nothing of ours, and here nothing at all: torch-free code asks."""
