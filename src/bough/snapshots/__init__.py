"""Snapshots of machines, and the machines that continue from snapshots.

store.py     manifests, dependencies between snapshots, removal
memory.py    guest memory on disk, and as templates that forks map
capture.py   take a snapshot of a running or stopped machine; copying.py copies its memory
moment.py    the common moment of the captures of several machines
suspend.py   suspend a machine's memory to disk, and resume it
bundle_manifest.py, bundle_writing.py, bundle_reading.py
             the content of a bundle; export.py and imports.py use them; ovf.py writes an OVA
tree.py      the use cases: take, fork, restore, verify, delete
"""
