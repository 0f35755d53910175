"""Reads and writes files: strict JSON, images, model folders, HTML pages, and files and folders written whole or not at all."""
