"""From judged completions to training records."""
