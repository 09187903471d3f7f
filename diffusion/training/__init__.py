"""One training run, with Lightning."""
