"""The pointer selector: the network and its checkpoints."""
