"""Composing and checking configurations."""
