"""Stages: what a verb does once its configuration is known."""
