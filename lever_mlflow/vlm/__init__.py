"""Asks the frozen vision-language model, in this process or on a server, and caches its answers."""
