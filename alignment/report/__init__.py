"""Comparison reports: one self-contained HTML page about runs. Nothing here imports torch."""
