"""Checks of a guest, and the command that repeats a check inside the guest until the check passes.

The guest repeats the check, so a wait costs one request and no traffic per attempt. The command needs a POSIX
shell, and systemctl for a unit. The command writes to standard error: before each attempt the byte ATTEMPT,
then the attempt's standard error, and standard output if the attempt failed. On success, standard output has
the output of the last attempt.

    exit status    0   the check passed
                   1   `most` attempts failed
                   GAVE_UP   the check found that it can never pass
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds between two attempts.
EVERY_S = 0.25
GAVE_UP = 113
ATTEMPT = b"\x1e"
#: Number of attempts for a unit without a job: the job may be queued shortly.
UNIT_GRACE_ATTEMPTS = 20

#: Begin of the wait's name in the guest's list of processes.
_WAIT_NAME = "bough: wait until "
_REPEAT = r"""
every=$1 most=$2 wanted=$3; shift 3
attempt=0 kept=''
# A file without a name: a pipe would end only with the last program that an attempt leaves behind.
for place in /dev/shm /run /tmp /var/tmp; do
  [ -e /proc/self/fd/2 ] && file=$(mktemp "$place/bough.XXXXXX" 2>/dev/null) || continue
  exec 3<>"$file"
  rm -f "$file"
  kept=/proc/self/fd/3
  break
done
try() {
  export BOUGH_ATTEMPT=$attempt
  if [ -z "$kept" ]; then out=$("$@"); return; fi
  : >$kept
  "$@" >>$kept 3>&-
  set -- $?
  out=$(cat $kept)
  return $1
}
while :; do
  attempt=$((attempt + 1))
  printf '\036' >&2
  try "$@"; status=$?
  case $wanted:$status in
    pass:0 | settle:0) printf %s "$out"; exit 0 ;;
    fail:0) ;;
    fail:*) exit 0 ;;
    settle:113) printf %s "$out" >&2; exit 113 ;;
  esac
  printf %s "$out" >&2
  [ "$attempt" = "$most" ] && exit 1
  sleep "$every" 2>/dev/null || sleep 1
done
"""

_UNIT = r"""
unit=$1 grace=$2; shift 2
load='' active='' sub='' result='' type='' job='' ended=''
facts=$(systemctl "$@" show -p LoadState,ActiveState,SubState,Result,Type,Job,ExecMainExitTimestampMonotonic \
  -- "$unit") || exit 1
while IFS='=' read -r name value; do
  case $name in
    LoadState) load=$value ;;
    ActiveState) active=$value ;;
    SubState) sub=$value ;;
    Result) result=$value ;;
    Type) type=$value ;;
    Job) job=$value ;;
    ExecMainExitTimestampMonotonic) ended=$value ;;
  esac
done <<FACTS
$facts
FACTS
[ "$active" = active ] && exit 0
if [ "$active:$type:$result:${job:-0}" = inactive:oneshot:success:0 ]; then
  [ "${ended:-0}" != 0 ] && exit 0
  # systemd forgets a unit that has ended and that no other unit names. The journal does not.
  field=UNIT
  [ $# = 0 ] || field=USER_UNIT
  case $unit in *.*) full=$unit ;; *) full=$unit.service ;; esac
  # All journals: a fork has another machine-id than the journal that it continues.
  boot=_BOOT_ID=$(tr -d - </proc/sys/kernel/random/boot_id)
  ended=$(journalctl -q -m -n 1 -o cat "$boot" "$field=$full" JOB_TYPE=start JOB_RESULT=done 2>/dev/null)
  [ -n "$ended" ] && exit 0
fi
if [ "$active" = failed ]; then
  echo "unit $unit has failed ($result)"
elif [ "$active" = inactive ] && [ "${job:-0}" = 0 ] && [ "$BOUGH_ATTEMPT" -ge "$grace" ]; then
  [ "$load" = not-found ] && echo "there is no unit $unit" && exit 113
  echo "unit $unit is inactive, and no job starts it"
else
  echo "unit $unit is $active ($sub)"
  exit 1
fi
systemctl "$@" --no-pager --full --lines=20 status -- "$unit"
exit 113
"""

_PORT = r"""
port=$1 wanted=$2
hex=$(printf :%04X "$port")
is=closed
for table in /proc/net/tcp /proc/net/tcp6; do
  [ -r "$table" ] || continue
  while read -r _ local _ state _; do
    case $state$local in 0A*"$hex") is=open ;; esac
  done <"$table"
done
[ "$is" = "$wanted" ] && exit 0
[ "$is" = open ] && echo "a program listens at TCP port $port" || echo "no program listens at TCP port $port"
exit 1
"""

_CONNECT = r"""
host=$1 port=$2 wanted=$3 why=''
if command -v bash >/dev/null && command -v timeout >/dev/null; then
  why=$(timeout 3 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$host" "$port" 2>&1)
elif nc -h 2>&1 | grep -q -e -z; then
  why=$(nc -z -w 3 "$host" "$port" 2>&1)
else
  for python in "$(command -v python3)" /.bough/bin/run /run/bough/disk/bin/run /dev/.bough/bin/run; do
    [ -x "$python" ] && break
  done
  case $python in
    */run) set -- "${python%/run}/busybox" sh "$python" python3 ;;
    *) set -- python3 ;;
  esac
  why=$("$@" -c 'import socket, sys
try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)
except OSError as error: sys.exit(str(error))' "$host" "$port" 2>&1)
fi
[ $? = 0 ] && is=open || is=closed
[ "$is" = "$wanted" ] && exit 0
[ "$is" = open ] && echo "$host answers at TCP port $port" || echo "no connection to $host port $port: $why"
exit 1
"""

_FILE = r"""
[ -e "$1" ] && exit 0
directory=$1
while [ ! -d "$directory" ]; do directory=$(dirname -- "$directory"); done
echo "$directory has:"
ls -A -- "$directory" | head -n 50
echo "there is no $1"
exit 1
"""


class Check(NamedTuple):
    """A command with a status that tells whether a guest is as required.

    Attributes:
        what: the required state, as the end of the sentence "waited until ...".
        wanted: status that passes: "pass" is 0, "fail" any other, "settle" 0 while GAVE_UP ends the wait.
    """

    argv: tuple[str, ...]
    what: str
    wanted: Literal["pass", "fail", "settle"] = "pass"


def script_passes(script: str) -> Check:
    """Return the check that a shell script ends with 0."""
    return Check(("sh", "-c", script), f"`{_first_line(script)}` succeeds")


def script_fails(script: str) -> Check:
    """Return the check that a shell script ends with another status than 0."""
    return Check(("sh", "-c", script), f"`{_first_line(script)}` fails", "fail")


def unit_is_active(unit: str, *, of_user: bool = False, grace_attempts: int = UNIT_GRACE_ATTEMPTS) -> Check:
    """Return the check that a systemd unit is active. A successful one-shot unit passes, too.

    The check gives up when the unit has failed, or is inactive without a job in attempt `grace_attempts`.
    """
    options = ("--user",) if of_user else ()
    argv = ("sh", "-c", _UNIT, "bough-unit", unit, str(grace_attempts), *options)
    return Check(argv, f"unit {unit} is active", "settle")


def port_is(wanted: Literal["open", "closed"], port: int, host: str | None = None) -> Check:
    """Return the check that a program listens, or no program listens, at a TCP port.

    Args:
        host: address or name, as the guest knows it, to connect to; None: the guest's own listeners, without
            a connection.
    """
    if host is None:
        return Check(("sh", "-c", _PORT, "bough-port", str(port), wanted), f"TCP port {port} is {wanted}")
    argv = ("sh", "-c", _CONNECT, "bough-port", host, str(port), wanted)
    return Check(argv, f"TCP port {port} of {host} is {wanted}")


def file_exists(path: str) -> Check:
    return Check(("sh", "-c", _FILE, "bough-file", path), f"{path} exists")


def render_wait(check: Check, *, every_s: float = EVERY_S, most: int = 0) -> list[str]:
    """Return the command that repeats `check` until the check passes.

    Args:
        most: number of attempts; 0: any number, until the command is ended.
    """
    name = f"{_WAIT_NAME}{check.what}"
    return ["sh", "-c", _REPEAT, name, f"{every_s:g}", str(most), check.wanted, *check.argv]


def describe_wait(argv: Sequence[str]) -> str | None:
    """Return "wait until ..." for a command of `render_wait`, None for any other command."""
    is_wait = len(argv) > 3 and argv[2] == _REPEAT and argv[3].startswith(_WAIT_NAME)
    return argv[3].removeprefix("bough: ") if is_wait else None


class Attempts:
    """The attempts of a wait, read from the command's standard error. Keeps the end of the output only."""

    _KEPT_BYTES = 64 * 1024

    def __init__(self) -> None:
        self.count = 0
        self._told = bytearray()

    def feed(self, stderr: bytes) -> None:
        """Add the next bytes of the wait's standard error."""
        self.count += stderr.count(ATTEMPT)
        self._told += stderr
        del self._told[: -self._KEPT_BYTES]

    @property
    def output(self) -> str:
        """Return the output of the last failed attempt with output. Unsafe for a terminal."""
        told = [part.strip() for part in bytes(self._told).split(ATTEMPT)]
        return next((part for part in reversed(told) if part), b"").decode(errors="replace")


def _first_line(script: str) -> str:
    lines = script.strip().splitlines() or [""]
    return lines[0] if len(lines) == 1 else f"{lines[0]} ..."
