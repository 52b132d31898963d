#!/sbin/openrc-run
description="bough guest agent"

depend() {
    after root fsck modules devfs
    before networking net hostname
    # The agent goes on during a shutdown: the host hears from the guest until the end.
    keyword -shutdown -timeout
}

# A second start takes the agent over from the first one. OpenRC tracks no process: without the agent disk
# there is none, and the service is not crashed.
start() {
    setsid /usr/lib/bough/start </dev/null >/dev/null 2>&1 &
    return 0
}

stop() {
    return 0
}
