"""The command that repeats a health check inside its guest, and the checks of each kind.

The command needs a POSIX shell. Like the waits of `guest_checks`, the command writes the byte ATTEMPT and the
end of the check's output to standard error for each attempt. The semantics are Compose's:

    start period    failures do not count; the pause is `start_interval`. The host ends the period
    afterwards      `retries` failures in a row end the wait; the pause is `interval`
    success         ends the wait at once

    exit status     0 healthy; 1 unhealthy; GAVE_UP the check found that it can never pass
"""

from __future__ import annotations

import math
from urllib.parse import urlsplit

from bough.guest_checks import Check, file_exists, port_is, unit_is_active
from bough.spec.project.healthcheck import HealthCheckSpec, LogCheck

#: How long a unit of systemd may have neither a job nor a start.
_UNIT_GRACE_S = 10.0
#: Time from the signal that ends a check to the signal that kills the check, in seconds.
_KILL_S = 5

_WAIT = r"""
pause=$1 retries=$2 timeout=$3 wanted=$4; shift 4
limit=''
timeout -k 1 1 true 2>/dev/null && limit="timeout -k 5 $timeout"
attempt=0 end="bough-health-$$-end"
while :; do
  attempt=$((attempt + 1))
  printf '\036' >&2
  # The check ends with its command: a daemon that the command has left may hold the pipe for years.
  status=$({ {
    BOUGH_ATTEMPT=$attempt $limit "$@" </dev/null 2>&1 3>&-; echo $? >&3; printf '\n%s\n' "$end"
  } | sed -n "/^$end\$/{x;/./p;q;};x;1!p" | tail -c 4000 >&2; } 3>&1)
  case $wanted:$status in
    *:0) exit 0 ;;
    settle:113) exit 113 ;;
    *:124 | *:137) [ -n "$limit" ] && echo "the check took longer than $timeout s" >&2 ;;
  esac
  [ "$attempt" = "$retries" ] && exit 1
  sleep "$pause" 2>/dev/null || sleep 1
done
"""

_HTTP = r"""
url=$1 timeout=$2 host=$3 port=$4 path=$5 header=$6 code='' why=''
if command -v curl >/dev/null; then
  why=$(curl -gsS -o /dev/null -w '\n%{http_code}' --max-time "$timeout" -- "$url" 2>&1)
  code=$(printf %s "$why" | tail -n 1)
elif command -v bash >/dev/null && [ "${url#http:}" != "$url" ]; then
  why=$(bash -c 'exec 3<>"/dev/tcp/$0/$1" || exit
printf "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" "$2" "$3" >&3
read -r _ code _ <&3 && printf "\n%s" "$code"' "$host" "$port" "$path" "$header" 2>&1)
  code=$(printf %s "$why" | tail -n 1)
elif command -v python3 >/dev/null; then
  why=$(python3 -c 'import http.client, sys
_, secure, timeout, host, port, path, header = sys.argv
kind = http.client.HTTPSConnection if secure == "https" else http.client.HTTPConnection
try:
    connection = kind(host, int(port), timeout=float(timeout))
    connection.request("GET", path, headers={"Host": header})
    print(f"\n{connection.getresponse().status}", end="")
except (OSError, http.client.HTTPException) as error:
    sys.exit(str(error))' "${url%%:*}" "$timeout" "$host" "$port" "$path" "$header" 2>&1)
  code=$(printf %s "$why" | tail -n 1)
elif command -v wget >/dev/null; then
  why=$(wget -S -O /dev/null -T "$timeout" "$url" 2>&1)
  code=$(printf '%s\n' "$why" | sed -n 's|.*HTTP/[0-9.]* \([0-9][0-9][0-9]\).*|\1|p' | tail -n 1)
  why=$(printf '%s\n' "$why" | tail -n 1)
else
  echo "the guest has no curl, no bash, no python3 and no wget for a check of kind http"
  exit 113
fi
case $code in
  2[0-9][0-9] | 3[0-9][0-9]) exit 0 ;;
  000) printf '%s: %s\n' "$url" "$(printf %s "$why" | head -n 1)" ;;
  [1-9][0-9][0-9]) echo "$url answers with status $code" ;;
  *) printf '%s: %s\n' "$url" "${why:-no answer}" ;;
esac
exit 1
"""

_LOG = r"""
pattern=$1 unit=$2 file=$3
if [ -n "$file" ]; then
  [ -e "$file" ] || { echo "there is no $file"; exit 1; }
  read_log() { cat -- "$file"; }
elif command -v journalctl >/dev/null; then
  boot=$(tr -d - </proc/sys/kernel/random/boot_id)
  # All journals of the directory: a fork continues the boot of another machine-id.
  read_log() { journalctl -m -q -o cat --no-pager ${unit:+-u "$unit"} _BOOT_ID="$boot"; }
else
  echo "the guest has no journal: name a file in the check of kind log"
  exit 113
fi
read_log | grep -E -q -e "$pattern"
case $? in
  0) exit 0 ;;
  1) echo "no line matches $pattern; the last lines are:"; read_log | tail -n 5; exit 1 ;;
esac
echo "grep -E does not accept the pattern $pattern"
exit 113
"""


def check_of(spec: HealthCheckSpec) -> Check:
    """Return the check of one attempt."""
    what = spec.describe()
    match spec.kind:
        case "test":
            return Check(spec.test or (), what)
        case "port":
            return port_is("open", spec.port or 0)._replace(what=what)
        case "http":
            return _http(spec, what)
        case "unit":
            grace = max(2, math.ceil(_UNIT_GRACE_S / spec.start_interval))
            return unit_is_active(spec.unit or "", grace_attempts=grace)._replace(what=what)
        case "file":
            return file_exists(spec.file or "")._replace(what=what)
        case "log":
            log = spec.log or LogCheck(pattern=".")
            argv = ("sh", "-c", _LOG, "bough-log", log.pattern, log.unit or "", log.file or "")
            return Check(argv, what, "settle")


def render_start(spec: HealthCheckSpec) -> list[str]:
    """Return the command that repeats the check in the start period: until the check passes."""
    return _render(spec, spec.start_interval, 0)


def render_wait(spec: HealthCheckSpec) -> list[str]:
    """Return the command that repeats the check until the check passes, or `retries` attempts have failed."""
    return _render(spec, spec.interval, spec.retries)


def render_look(spec: HealthCheckSpec) -> list[str]:
    """Return the command that makes one attempt."""
    return _render(spec, spec.interval, 1)


def longest_s(spec: HealthCheckSpec) -> float:
    """Return the longest time in which `render_wait`'s command ends, in seconds of the guest."""
    return spec.retries * (spec.interval + spec.timeout + _KILL_S)


def _render(spec: HealthCheckSpec, pause_s: float, retries: int) -> list[str]:
    check = check_of(spec)
    times = (f"{pause_s:g}", str(retries), str(math.ceil(spec.timeout)))
    return ["sh", "-c", _WAIT, "bough-health", *times, check.wanted, *check.argv]


def _http(spec: HealthCheckSpec, what: str) -> Check:
    url = spec.http or ""
    parts = urlsplit(url)
    host = parts.hostname or "localhost"
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    words = (url, str(math.ceil(spec.timeout)), host, str(port), path, parts.netloc)
    return Check(("sh", "-c", _HTTP, "bough-http", *words), what, "settle")
