"""Directories of the host in a guest.

    guest                                                 host
    a program -> kernel (FUSE) -> sshfs -> agent  ==port==  keeper.py -> sftp-server in a jail (server.py)

sshfs speaks SFTP; the agent and the keeper carry its bytes as those of a session (docs/agent.md), so no
network and no device of QEMU is involved, and nothing of it is in the way of a snapshot.
"""
