"""Trains and measures the embedded models. Using the models takes nothing from this package."""
