"""Pure tensor functions that every method shares: log-probs, KL estimators, reductions."""
