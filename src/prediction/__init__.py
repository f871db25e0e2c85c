"""From images to alphas of their own size, by a recipe chosen on validation data."""
