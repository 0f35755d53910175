"""The frozen vision-language model: prompts in, cached answers out, in this process or behind a server."""
