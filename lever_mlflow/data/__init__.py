"""Reads the data that a selector works on: samples, their features and candidate pools; scores answers by VQA accuracy."""
