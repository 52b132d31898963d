"""The switch of a network: one process per network, which carries Ethernet frames between machines.

    QEMU ── nic.sock / switch.sock ──┐
    QEMU ── nic.sock / switch.sock ──┼── the switch ── control.sock ── service
    QEMU ── nic.sock / switch.sock ──┘

Each machine has a port: a directory with a datagram socket of QEMU and another of the switch (see
switch_port.py). So the socket names the sender of a frame. The switch outlives the service, and QEMU outlives
the switch: a new switch binds the same names, and frames in between are lost.

    program.py    the process: its loop, and its command line
    fabric.py     ports, forwarding, and what happens to each frame
    port.py       one port: its sockets, its bounded queue, its counters
    table.py      MAC address -> port
    faults.py     frames that are lost, late, doubled, damaged or held back; link_fault.py has the data
    guard.py      the frames that a machine may not send: addresses and answers of others
    gateway.py    frames that leave and enter a network with an uplink
    services.py   the switch's own address: ARP, DHCP, DNS; advertisement.py and neighbor.py for IPv6
    control.py    the service's requests, one JSON object a line
    capture.py    frames in the form of pcapng

The modules import no other part of bough than switch_port.py and frame_stream.py: the process runs in a jail
with few files.
"""
