"""From alphas to what people get: the submission and pictures."""
