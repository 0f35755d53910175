"""Kills the commands at random moments, runs several of them on one store at the same time, and compares what they leave."""
