"""The parts of a copy between the host and a guest; client/copy.py is the API."""
