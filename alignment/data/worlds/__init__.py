"""Small worlds that the project writes itself, whose true reward is known."""
