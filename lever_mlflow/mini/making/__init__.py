"""Trains and measures the embedded models; nothing here is needed to use them."""
