"""Recorded trials: the RL data file, rewards, and the rollout that records them."""
