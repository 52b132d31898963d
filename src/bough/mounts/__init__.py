"""Directories of the host in a guest.

    guest                                                 host
    a program -> kernel (FUSE) -> sshfs -> agent  ==port==  keeper.py -> sftp-server in a jail (server.py)

sshfs speaks SFTP. The agent and the keeper carry its bytes in a session (docs/agent.md). So mounts need no
network and no device of QEMU, and do not hinder snapshots.
"""
