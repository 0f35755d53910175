"""Compares runs: finds what differs between them and what the differences are worth, and writes the report that says so."""
