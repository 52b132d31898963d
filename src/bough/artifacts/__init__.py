"""Images and machines as artifacts of a registry: format, chunks, and the OCI layout on a disk.

document    manifest and description, with all checks of a hostile registry's text
content     bytes of a file with holes
writing     parts -> chunks of zstd -> a layout that skopeo pushes
reading     a pulled layout -> pieces of the parts
"""
