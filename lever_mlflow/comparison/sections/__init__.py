"""The sections of a report: each is a function that turns the facts of a comparison into blocks, in the words of one language."""
