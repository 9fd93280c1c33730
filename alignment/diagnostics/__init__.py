"""Callbacks that watch a run, keep it alive and say what they see."""
