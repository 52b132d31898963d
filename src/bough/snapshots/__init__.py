"""Snapshots of machines, and the machines that continue from snapshots.

store.py     manifests, dependencies between snapshots, removal
memory.py    guest memory on disk, and as templates that forks map
capture.py   take a snapshot of a running or stopped machine; copying.py copies its memory
suspend.py   suspend a machine's memory to disk, and resume it
handover.py  the content of a bundle; export.py and imports.py write and read one; ovf.py writes an OVA
ready.py     booted snapshots, which `bough run` forks
ahead.py     one fork begun in advance; spares.py: standby machines
prewarm.py   when to pre-warm a snapshot; frozen.py: the process images that a pre-warm makes
kind.py      which forks are interchangeable
tree.py      the use cases: take, fork, restore, verify, delete
"""
