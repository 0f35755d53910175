"""Turns steps into MLflow runs: starts, tags and finds them, and reads what they left; it knows nothing of the domain."""
