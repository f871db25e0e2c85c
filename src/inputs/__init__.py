"""From flags and folders to the paths of one run."""
