"""Snapshots of machines, running or not, and what goes on from them.

store.py     the manifests, who stands on whom, what can go
memory.py    guest memory on disk, and as templates that forks map
capture.py   taking one: of a machine that runs on, or of one that is stopped; copying.py: its memory
suspend.py   a machine's memory to disk, and back
handover.py  what is in a bundle; export.py, imports.py: written and taken up; ovf.py: for others
ready.py     kept snapshots of booted images, which runs are forks of
ahead.py     the next fork, begun before it is asked for; spares.py: machines that have answered and stand by
tree.py      the use cases: take, fork, restore, verify, delete
"""
