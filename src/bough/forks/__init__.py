"""Fork speed: bough prepares the next fork of a snapshot, so that the fork is ready sooner.

level.py               the ladder: booted, pre-warmed, loaded, standby, running
pool.py                the pool of everything kept, and the eviction
booted.py              choice of the booted snapshot for `bough run`
prewarm.py             when a snapshot is pre-warmed; urgency.py: whether a user waits for the pre-warm
process_image/         a QEMU process captured as data and continued by forks
loaded.py              forks with a state loaded before the request
standby.py             standby machines, on request of users
fork_kind.py           groups of interchangeable forks
host_memory.py         whether the host is short of memory
saved_states.py        hands out saved states; callers need not know how warm a state is
"""
