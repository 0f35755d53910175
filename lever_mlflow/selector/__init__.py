"""Defines the pointer selector: its network and its checkpoints."""
