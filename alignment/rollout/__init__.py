"""What samples completions from a model."""
