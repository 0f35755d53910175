"""Holds the sections of a report: functions that turn the facts of a comparison into blocks, in the words of a language."""
