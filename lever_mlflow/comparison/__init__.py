"""The comparison of runs: what differs between them, what the differences are worth, and the report that says so."""
