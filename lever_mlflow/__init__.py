"""Select in-context demonstrations for vision-language models with a pointer network trained by offline RL."""

__version__ = "0.1.0"
