"""jaxKAN: what converts its layers."""
