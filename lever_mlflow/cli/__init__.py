"""Defines the command line: options generated from ``lever_mlflow.settings``, one command per step, and errors as one line.

Nothing heavy is imported outside of functions, so that ``--help`` answers at once.
"""
