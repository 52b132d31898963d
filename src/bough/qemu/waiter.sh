#!/bin/sh
# The waiter: starts QEMU in its jail, waits for its end, and keeps its output and exit status (process.py).
# Arguments: log directory, size of a part of the log, address space in KiB for `ulimit -v`, cgroups of QEMU,
# "--", the command.
#
# "read < /proc/self/stat" is executed by the shell that the file describes; $$ would be the first shell.
# The shell's standard streams are the names of QEMU's sockets, kept open by the shell: see sockets.py. The
# names can neither be read nor written.
umask 077; ulimit -c 0; ulimit -n 1024
dir=$1 part=$2 space=$3; shift 3
identify() {
  read -r me _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ start _ < /proc/self/stat
}
identify; waiter="$me $start"
read -r boot < /proc/sys/kernel/random/boot_id
{
  (
    identify
    echo "$boot $waiter $me $start" > "$dir/process" || exit 125
    while [ "$1" != -- ]; do echo 0 > "$1/cgroup.procs" || exit 125; shift; done
    shift
    ulimit -v "$space"
    exec "$@" < /dev/null
  )
  echo $? > "$dir/exit.new"
  grep -qs 'oom_kill [1-9]' -- "$1/memory.events" "$1/memory.oom_control" "$2/memory.oom_control" &&
    echo "bough: the host's kernel ended it: it took more memory than limits.memory"
} 2>&1 | {
  # Not "until": where the machine is deleted before it began, there is nowhere to write to, and no end.
  while head -c "$part" > "$dir/qemu.log" && [ "$(wc -c < "$dir/qemu.log")" -ge "$part" ]; do
    mv -f "$dir/qemu.log" "$dir/qemu.log.old"
  done
}
while [ "$1" != -- ]; do
  # What is left in it is the uplink, which waits for our copies of its socket to be closed. On a host where a
  # hundred machines end at once, what was killed takes a while to be gone.
  for pause in 0.01 0.02 0.02 0.05 0.05 0.1 0.1 0.2 0.5 1 1 1; do
    while read -r left; do kill -9 "$left"; done < "$1/cgroup.procs"
    rmdir "$1" && break; sleep "$pause"
  done
  shift
done
mv -f "$dir/exit.new" "$dir/exit"
