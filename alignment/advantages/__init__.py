"""From rewards to advantages, one method a file: pure functions over a whole batch of roll-outs."""
