"""Container images (OCI, Docker) as images of machines."""
