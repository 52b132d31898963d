"""Projects: machines and networks that one file describes. Records, and the health of their machines."""
