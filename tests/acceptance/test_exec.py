"""`bough exec`: the input, output and end of a command."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess

import pytest

from tests.acceptance.conftest import BOUGH, Cli
from tests.waiting import wait_until


def runs_in_guest(cli: Cli, box: str, pattern: str) -> bool:
    return cli("exec", box, "--", "pgrep", "-f", "-x", pattern, check=False).returncode == 0


@pytest.mark.parametrize("status", [0, 1, 42, 126, 255])
def test_the_exit_status_is_passed_through(cli: Cli, box: str, status: int) -> None:
    assert cli("exec", box, "--", "sh", "-c", f"exit {status}", check=False).returncode == status


def test_death_by_a_signal_is_told_as_a_shell_tells_it(cli: Cli, box: str) -> None:
    assert cli("exec", box, "--", "sh", "-c", "kill -TERM $$", check=False).returncode == 128 + signal.SIGTERM


def test_a_command_that_is_not_there(cli: Cli, box: str) -> None:
    done = cli("exec", box, "--", "no-such-command", check=False)
    assert done.returncode == 127
    assert b"no-such-command" in done.stderr
    assert b"Traceback" not in done.stderr


def test_streams_stay_apart_and_whole(cli: Cli, box: str) -> None:
    done = cli("exec", box, "--", "sh", "-c", "printf 'out\\0\\377'; printf err >&2")
    assert done.stdout == b"out\0\377"
    assert done.stderr == b"err"


def test_stdin_from_a_pipe_with_its_end(cli: Cli, box: str) -> None:
    data = os.urandom(3 * 1024 * 1024 + 1)
    assert cli("exec", box, "--", "cat", stdin=data).stdout == data


def test_a_command_that_does_not_read_its_stdin(cli: Cli, box: str) -> None:
    assert cli("exec", box, "--", "true", stdin=bytes(8 * 1024 * 1024)).returncode == 0


def test_output_comes_while_the_command_runs(cli: Cli, box: str) -> None:
    process = cli.popen(
        "exec", box, "--", "sh", "-c", "echo first; read line; echo $line",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"first\n"
        process.stdin.write(b"second\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"second\n"
        process.stdin.close()
    assert process.returncode == 0


def test_environment_directory_and_user(cli: Cli, box: str) -> None:
    said = cli.text(
        "exec", "-e", "GREETING=good day", "-w", "/usr/share", "-u", "nobody", box, "--",
        "sh", "-c", 'echo "$GREETING"; pwd; id -un',
    )  # fmt: skip
    assert said.splitlines() == ["good day", "/usr/share", "nobody"]


def test_words_are_not_split_or_expanded(cli: Cli, box: str) -> None:
    words = ["a b", "$HOME", "*", "'", '"', "", "ä\n"]
    assert cli("exec", box, "--", "printf", "%s\\0", *words).stdout == b"".join(
        word.encode() + b"\0" for word in words
    )


def test_a_directory_and_a_user_that_are_not_there(cli: Cli, box: str) -> None:
    cli.error("exec", "-w", "/no/such/place", box, "--", "true", says="/no/such/place")
    cli.error("exec", "-u", "nosuchuser", box, "--", "true", says="nosuchuser")


def test_a_timeout_kills_the_command_in_the_guest(cli: Cli, box: str) -> None:
    cli.error("exec", "--timeout", "1s", box, "--", "sleep", "3601", says="1 s")
    wait_until(lambda: not runs_in_guest(cli, box, "sleep 3601"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_when_the_client_is_killed_so_is_the_command(cli: Cli, box: str, how: signal.Signals) -> None:
    script = f"sleep 36{int(how):02} & echo started; wait"
    with cli.popen("exec", box, "--", "sh", "-c", script, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        process.send_signal(how)
    # The whole process group ends, including the background job.
    wait_until(lambda: not runs_in_guest(cli, box, f"sleep 36{int(how):02}"))


def test_a_terminal(cli: Cli, box: str) -> None:
    ours, theirs = pty.openpty()
    script = "test -t 0 && test -t 1 && stty size && echo TERM=$TERM && read line && echo got $line"
    process = cli.popen(
        "exec", "-t", box, "--", "sh", "-c", script, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    with process:
        seen = read_until(ours, b"TERM=")
        os.write(ours, b"typed\r")
        seen += read_until(ours, b"got typed")
    os.close(ours)
    assert process.returncode == 0
    assert b"got typed" in seen


def read_until(descriptor: int, mark: bytes, timeout_s: float = 30) -> bytes:
    """Return the output of a terminal up to `mark`."""
    seen = b""
    while mark not in seen and select.select([descriptor], [], [], timeout_s)[0]:
        try:
            data = os.read(descriptor, 4096)
        except OSError:  # EIO: the other side of the terminal is closed
            break
        if not data:
            break
        seen += data
    assert mark in seen, seen
    return seen


def test_fifty_at_once(cli: Cli, box: str) -> None:
    processes = [
        cli.popen("exec", box, "--", "sh", "-c", f"cat; echo {number} >&2; exit {number}",
                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for number in range(50)
    ]  # fmt: skip
    for number, process in enumerate(processes):
        out, err = process.communicate(f"line {number}\n".encode() * 1000, timeout=300)
        assert (out, err, process.returncode) == (
            f"line {number}\n".encode() * 1000, f"{number}\n".encode(), number,
        )  # fmt: skip


def test_a_reader_that_stops_reading_gets_everything_later(cli: Cli, box: str) -> None:
    size = 64 * 1024 * 1024
    with cli.popen(
        "exec", box, "--", "head", "-c", str(size), "/dev/zero", stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        # Other commands are served meanwhile: only this stream waits.
        assert cli.text("exec", box, "--", "echo", "served") == "served"
        assert len(first + process.stdout.read()) == size


def test_of_a_machine_that_is_not_there_or_not_running(
    cli: Cli, box: str, debian: str, gone: list[str]
) -> None:
    cli.error("exec", "bxo", "--", "true", says="bxo", hint="box")
    gone.append("asleep")
    cli("create", debian, "--name", "asleep")
    cli.error("exec", "asleep", "--", "true", says="stopped", hint="bough start asleep")


def test_a_loop_that_reads_lines(cli: Cli, box: str) -> None:
    script = f"seq 3 | while read i; do {BOUGH} exec -n {box} -- sh -c 'cat; echo '$i; done"
    done = subprocess.run(["sh", "-c", script], capture_output=True, env=cli.env, check=True, timeout=120)
    assert done.stdout == b"1\n2\n3\n"
    assert cli("exec", "-n", box, "--", "cat", stdin=b"not read").stdout == b""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_are_closed(cli: Cli, box: str, closed: str) -> None:
    for words in (f"exec {box} -- sh -c 'cat; exit 5'", f"exec -n {box} -- sh -c 'exit 5'"):
        assert (
            subprocess.run(f"{BOUGH} {words} {closed}", shell=True, env=cli.env, check=False).returncode == 5
        )
    for words in ("list", f"info {box}", f"cp {box}:/etc/hostname /dev/null", f"shell {box}", "version"):
        assert (
            subprocess.run(f"{BOUGH} {words} {closed}", shell=True, env=cli.env, check=False).returncode == 0
        ), words


def test_options_between_the_name_and_the_dashes(cli: Cli, box: str) -> None:
    said = cli.text("exec", box, "-e", "A=b", "-w", "/usr", "--", "sh", "-c", "echo $A $PWD")
    assert said == "b /usr"
    done = cli("exec", box, "-e", "A=b", "ls", check=False)
    assert done.returncode == 2
    assert b"options go before NAME" in done.stderr


def test_a_variable_without_a_value(box: str) -> None:
    script = 'echo "${FOO-not set}"'
    assert Cli({"FOO": "x"}).text("exec", "-e", "FOO", box, "--", "sh", "-c", script) == "x"
    assert "FOO" not in os.environ
    assert Cli().text("exec", "-e", "FOO", box, "--", "sh", "-c", script) == "not set"


def test_words_that_are_not_utf_8(cli: Cli, box: str) -> None:
    odd = os.fsdecode(b"a\xffb")
    script = 'printf "%s %s" "$0" "$ODD"'
    done = cli("exec", "-e", f"ODD={odd}", box, "--", "sh", "-c", script, odd)
    assert done.stdout == b"a\xffb a\xffb"
    assert cli("exec", box, "--", odd, check=False).returncode == 127


def test_commands_as_long_as_the_kernel_takes(cli: Cli, box: str) -> None:
    script = "echo $#"
    assert cli.text("exec", box, "--", "sh", "-c", script, "sh", *["word"] * 150_000) == "150000"
    assert cli.text("exec", box, "--", "sh", "-c", "echo ${#0}", "w" * 131_071) == "131071"


def test_a_program_whose_loader_is_gone(cli: Cli, box: str) -> None:
    make = "printf '#!/no/such/loader\\n' > /tmp/lost; chmod +x /tmp/lost"
    cli("exec", box, "--", "sh", "-c", make)
    done = cli("exec", box, "--", "/tmp/lost", check=False)
    assert done.returncode == 127
    assert b"loader" in done.stderr


def test_a_path_that_continues_another(cli: Cli, box: str) -> None:
    add = "cp /etc/environment /tmp/environment; echo 'PATH=/opt/bin:$PATH' >> /etc/environment"
    cli("exec", box, "--", "sh", "-c", add)
    try:
        assert cli.text("exec", box, "--", "sh", "-c", "ls -d /; echo $PATH").startswith("/\n/opt/bin:/usr/")
    finally:
        cli("exec", box, "--", "cp", "/tmp/environment", "/etc/environment")


def test_a_terminal_that_the_guest_does_not_know(box: str) -> None:
    ours, theirs = pty.openpty()
    process = Cli({"TERM": "xterm-ghostty"}).popen(
        "exec", "-t", box, "--", "sh", "-c", "echo [$TERM]", stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    assert b"[xterm-256color]" in read_until(ours, b"]")
    assert process.wait(60) == 0
    os.close(ours)
