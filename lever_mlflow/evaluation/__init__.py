"""Evaluates policies on the same questions: what they pick, what the VLM answers, and what the differences are worth."""
