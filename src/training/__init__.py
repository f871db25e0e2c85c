"""From pairs to a checkpoint: state, steps, validation."""
