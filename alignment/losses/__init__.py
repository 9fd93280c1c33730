"""One objective a file: pure functions that return unreduced values."""
