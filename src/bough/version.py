"""The version of bough."""

__version__ = "0.1.0"
