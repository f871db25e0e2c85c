"""From a batch to alpha at the network's size: U2-NetP, its losses, its checkpoints."""
