"""Holds the steps of the experiment, one file each: every file prepares its step, finds its finished runs, and runs it."""
