"""Default probabilities that can be explained, traced and corrected."""
