"""Keeps the model registry: versions, their model cards, the champion and the evidence for a promotion."""
