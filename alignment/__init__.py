"""Post-training of language models: one framework, every method on the same parts."""

__version__ = "0.1.0"
