"""The use cases of projects: machines and networks that one file describes."""
