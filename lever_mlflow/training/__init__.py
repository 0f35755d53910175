"""Trains a selector on recorded trials, by RCE and by GRPO."""
