"""Records, sources, views, tokenising and batches: from any data set to any method."""
