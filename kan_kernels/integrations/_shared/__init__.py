"""What the adapters share: how a layer is known by its code, compared on a probe, and given a fast class."""
