"""Fork speed: what bough keeps so that the next fork of a snapshot is ready sooner.

level.py               the ladder: booted, pre-warmed, loaded, standby, running
pool.py                the one pool of all that is kept, and its eviction
booted.py              which booted snapshot `bough run` forks
prewarm.py             when a snapshot is pre-warmed; urgency.py: whether a user waits for the pre-warm
process_image/         a QEMU process captured as data, from which forks continue
loaded.py              forks that have loaded their state before they are requested
standby.py             standby machines, which users request
fork_kind.py           which forks are interchangeable
host_memory.py         whether the host is short of memory
saved_states.py        hands out saved states; nobody else knows how warm a state is
"""
