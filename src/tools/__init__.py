"""What made the shipped weights; developers' tools, not part of the kernel."""
