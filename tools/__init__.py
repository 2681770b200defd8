"""What the build asks before any package is there."""
