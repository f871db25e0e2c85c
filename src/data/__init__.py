"""From paths to batches: images, pairs, backdrops, augmentation."""
