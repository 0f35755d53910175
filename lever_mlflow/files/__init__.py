"""Reads and writes files: strict JSON, images, model folders, HTML pages, and whatever must be written whole or not at all."""
