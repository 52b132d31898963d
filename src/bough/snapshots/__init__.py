"""Snapshots of machines, running or not, and what goes on from them.

store.py     the manifests, who stands on whom, what can go
memory.py    guest memory on disk, and as templates that forks map
capture.py   taking one: of a machine that runs on, or of one that is stopped
tree.py      the use cases: take, fork, restore, verify, delete
"""
