"""Faults of machines: their records, and how each is made and undone."""
