"""Measuring a finished model: fresh samples, rewards, KL and their intervals."""
