"""Measures what a run begins with: building the image, bringing it to a machine, and waiting for the first result."""
