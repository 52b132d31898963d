"""Validators of single values. Each function takes a raw value and returns the value of the spec.

The functions raise pydantic errors made by `told`; the user sees the text unchanged. No function looks at the
host. Some texts later become part of a QEMU argument, a file in the guest or a path. The form of such a text
excludes every character with a special meaning there.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import posixpath
import re
import shlex
from typing import Any

from pydantic_core import PydanticCustomError

from bough.errors import InvalidInput
from bough.spec.container_name import is_container_name, parse_container_name
from bough.spec.problems import nearest, quote, told
from bough.units import MIB, TIB, format_size, parse_duration, parse_size

LEAST_MEMORY = 64 * MIB
MOST_MEMORY = 16 * TIB
LEAST_DISK = 1 * MIB
MOST_DISK = 64 * TIB
MOST_VCPUS = 255
MOST_HOSTNAME = 64
MOST_FILE_BYTES = 16 * MIB
MOST_WORDS = 4096
MOST_WORDS_CHARS = 131_072
ARCHITECTURES = ("x86_64", "aarch64", "riscv64", "i386")

#: Names that other programs use.
_ARCHITECTURE_NAMES = {
    **dict.fromkeys(("amd64", "x86-64", "x64"), "x86_64"),
    **dict.fromkeys(("arm64", "armv8", "arm64v8"), "aarch64"),
    **dict.fromkeys(("riscv", "rv64"), "riscv64"),
    **dict.fromkeys(("i486", "i586", "i686", "x86", "ia32"), "i386"),
}
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/:@-]{0,254}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_OWNER = re.compile(r"(?:[a-z_][a-z0-9_-]{0,31}|\d{1,9})(?::(?:[a-z_][a-z0-9_-]{0,31}|\d{1,9}))?")
_QEMU_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSIONED = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*-\d+\.\d+")
_PROGRAM_USER = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,254}\$?(?::[A-Za-z0-9_][A-Za-z0-9_.@-]{0,254}\$?)?"
)
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,19}")
_MODE = re.compile(r"0?[0-7]{3,4}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: First words of user-data (cloud-init's documentation, "User-data formats").
_USER_DATA = ("#cloud-", "#!", "#include", "#part-handler", "#upstart-job", "## template: jinja")
_MIME = re.compile(
    r"(?:from [^\n]*\n)?(?:content-[a-z-]+|mime-version|from|to|subject|date|message-id|x-[a-z-]+):",
    re.IGNORECASE,
)
_SSH_KEY_TYPES = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)


def parse_name(value: Any) -> str:
    """Check the name of a machine or a host: an RFC 1123 label in lower case.

    Raises:
        InvalidInput: the value is no such label.
    """
    if isinstance(value, str) and _LABEL.fullmatch(value):
        return value
    wanted = "lower-case letters, digits and '-', starting and ending with a letter or digit, at most 63"
    hint = None
    if isinstance(value, str):
        better = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:63].rstrip("-")
        hint = f"for example {better!r}" if better else None
    raise InvalidInput(f"expected a name of {wanted}, got {quote(value)}", hint=hint)


check_name = parse_name


def hostname(value: Any) -> str:
    """Check a host name, with or without a domain: labels of RFC 1123, at most 64 characters (as Linux)."""
    labels = value.split(".") if isinstance(value, str) else []
    if labels and len(value) <= MOST_HOSTNAME and all(_LABEL.fullmatch(one) for one in labels):
        return str(value)
    wanted = (
        "expected a host name like 'web' or 'mail.example.com': lower-case letters, digits and '-', "
        f"at most 63 between two dots and {MOST_HOSTNAME} in all"
    )
    better = ".".join(re.sub(r"[^a-z0-9]+", "-", one.lower()).strip("-") for one in labels if one)
    fits = bool(better) and len(better) <= MOST_HOSTNAME and better != value
    raise told(f"{wanted}, got {quote(value)}", f"for example {better!r}" if fits else None)


def label(value: Any) -> str:
    try:
        return parse_name(value)
    except InvalidInput as error:
        raise told(error.message, error.hint) from None


def image(value: Any) -> str:
    """Check the name of an image, and fill in a container image's: docker.io, library/, :latest."""
    if isinstance(value, str) and is_container_name(value):
        return _container_image(value)
    if not isinstance(value, str) or not _IMAGE.fullmatch(value):
        raise told(f"expected the name of an image like 'debian:12', got {quote(value)}")
    return value


def _container_image(value: str) -> str:
    """Return the full name, and "@" with the architecture if the name ends in one."""
    label, at, last = value.rpartition("@")
    arch = _ARCHITECTURE_NAMES.get(last.lower(), last.lower()) if at else ""
    try:
        if arch in ARCHITECTURES:
            return f"{parse_container_name(label)}@{arch}"
        return str(parse_container_name(value))
    except InvalidInput as error:
        raise told(error.message, error.hint) from None


def architecture(value: Any) -> str:
    name = _ARCHITECTURE_NAMES.get(value.lower(), value.lower()) if isinstance(value, str) else ""
    if name not in ARCHITECTURES:
        known = ", ".join(map(repr, ARCHITECTURES))
        close = nearest(name, ARCHITECTURES)
        raise told(
            f"expected one of {known}, got {quote(value)}", f"did you mean '{close}'?" if close else None
        )
    return name


def parse_architecture(value: str) -> str:
    """Check an `architecture` outside of a spec. Raises InvalidInput."""
    try:
        return architecture(value)
    except PydanticCustomError as error:
        context = error.context or {}
        raise InvalidInput(str(context.get("message")), hint=context.get("hint")) from None


def vcpus(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise told(f"expected a whole number of virtual CPUs, got {quote(value)}")
    if not 1 <= value <= MOST_VCPUS:
        raise told(f"expected 1 to {MOST_VCPUS} virtual CPUs, got {quote(value)}")
    return value


def memory(value: Any) -> int:
    return _bounded_size(value, LEAST_MEMORY, MOST_MEMORY, "MiB")


def disk_size(value: Any) -> int:
    return _bounded_size(value, LEAST_DISK, MOST_DISK, "GiB")


def _bounded_size(value: Any, least: int, most: int, unit: str) -> int:
    """Return bytes, rounded up to whole MiB: whole MiB suit both QEMU's memory and disk sectors."""
    try:
        size = parse_size(value)
    except ValueError as error:
        raise told(str(error)) from None
    if size < least:
        bare = isinstance(value, int) or str(value).strip().isdigit()
        hint = f"a number alone is bytes: did you mean '{value}{unit}'?" if bare and size else None
        raise told(f"expected at least {format_size(least)}, got {format_size(size)}", hint)
    if size > most:
        raise told(f"expected at most {format_size(most)}, got {format_size(min(size, 1024 * 1024 * TIB))}")
    return -(-size // MIB) * MIB


def cpu_model(value: Any) -> str:
    if not isinstance(value, str) or not _QEMU_NAME.fullmatch(value):
        raise told(f"expected 'auto' or the name of a CPU model like 'Skylake-Client-v3', got {quote(value)}")
    return value


def machine_type(value: Any) -> str:
    if isinstance(value, str) and (value == "auto" or _VERSIONED.fullmatch(value)):
        return value
    expected = "expected 'auto' or a machine type with its version, like 'pc-q35-7.2' or 'virt-7.2'"
    known = isinstance(value, str) and _QEMU_NAME.fullmatch(value)
    hint = f"{value!r} alone is another machine type after an upgrade of QEMU" if known else None
    raise told(f"{expected}, got {quote(value)}", hint)


def guest_path(value: Any) -> str:
    """Check the absolute path of a file in the guest: no '.' or '..', and not the root."""
    _printable(value, "an absolute path")
    if not value.startswith("/") or value.endswith("/"):
        raise told(f"expected the absolute path of a file like '/etc/motd', got {quote(value)}")
    if posixpath.normpath(value) != value or len(value.encode()) > 4095:
        raise told(f"expected a path without '.', '..' and '//', got {quote(value)}")
    return str(value)


def host_path(value: Any) -> str:
    _printable(value, "an absolute path")
    if not value.startswith("/"):
        raise told(f"expected an absolute path on the host, got {quote(value)}")
    return str(value)


def command_line(value: Any) -> str:
    _printable(value, "a kernel command line")
    if len(value.encode()) > 2047:
        raise told(f"expected at most 2047 bytes, got {len(value.encode())}")
    return str(value)


def clock(value: Any) -> str:
    if value in ("utc", "local"):
        return str(value)
    if isinstance(value, str) and value[:1] in ("+", "-"):
        try:
            parse_duration(value[1:])
            return value
        except ValueError:
            pass
    raise told(
        f"expected 'utc', 'local' or an offset like '+2h', '-30m' or '-7d', got {quote(value)}",
        f"did you mean '+{value}'?" if isinstance(value, str) and re.match(r"\d", value) else None,
    )


def user_name(value: Any) -> str:
    if not isinstance(value, str) or not _USER.fullmatch(value):
        raise told(f"expected a user name of lower-case letters, digits, '-' and '_', got {quote(value)}")
    if value == "root":
        raise told("'root' exists already", "set ssh_keys of the machine for the keys of root")
    return value


def group_name(value: Any) -> str:
    if not isinstance(value, str) or not _USER.fullmatch(value):
        raise told(f"expected a group name of lower-case letters, digits, '-' and '_', got {quote(value)}")
    return value


def owner(value: Any) -> str:
    if not isinstance(value, str) or not _OWNER.fullmatch(value):
        raise told(f"expected an owner like 'root', 'admin:users' or '1000:1000', got {quote(value)}")
    return value


def ssh_key(value: Any) -> str:
    """Check one public key: a line of authorized_keys without options."""
    example = "expected a public ssh key like 'ssh-ed25519 AAAA... name'"
    if not isinstance(value, str):
        raise told(f"{example}, got {quote(value)}")
    text = value.strip()
    if "PRIVATE KEY" in text:
        raise told("this is a private key; a machine needs the public key", "give the file that ends in .pub")
    words = text.split(None, 2)
    if _CONTROL.search(text) or len(text) > 16384:
        raise told(f"{example} on one line, got {quote(value)}")
    if len(words) < 2 or words[0] not in _SSH_KEY_TYPES:
        hint = "give the content of the file, not its path" if text.startswith(("/", "~")) else None
        raise told(f"{example}, got {quote(value)}", hint)
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        blob = b""
    name = words[0].encode()
    if len(blob) < len(name) + 24 or blob[: 4 + len(name)] != len(name).to_bytes(4, "big") + name:
        raise told(f"this {words[0]} key is damaged or cut off: {quote(value)}")
    return text


def uplink(value: Any) -> bool | str:
    if isinstance(value, bool) or value == "isolated":
        return bool(value) if isinstance(value, bool) else "isolated"
    close = {"on": "true", "yes": "true", "off": "false", "no": "false", "none": "false"}.get(
        str(value).lower()
    )
    raise told(
        f"expected true, false or 'isolated', got {quote(value)}", f"did you mean {close}?" if close else None
    )


def process_memory(value: Any) -> int:
    return _bounded_size(value, LEAST_MEMORY, 2 * MOST_MEMORY, "MiB")


def cpu_percent(value: Any) -> int:
    """Return percent of one processor, from 150 or "150%"."""
    text = value.strip().removesuffix("%").strip() if isinstance(value, str) else value
    if isinstance(text, str) and text.isdigit() and len(text) < 9:
        text = int(text)
    if not isinstance(text, int) or isinstance(text, bool):
        raise told(f"expected a percentage of one processor like '150%', got {quote(value)}")
    if not 1 <= text <= 100 * MOST_VCPUS:
        raise told(f"expected 1% to {100 * MOST_VCPUS}%, got {quote(value)}", "100% is one whole processor")
    return text


def byte_rate(value: Any) -> int:
    """Return bytes per second, from a size with or without "/s"."""
    try:
        rate = parse_size(value.strip().removesuffix("/s") if isinstance(value, str) else value)
    except ValueError:
        raise told(f"expected an amount per second like '20MiB/s', got {quote(value)}") from None
    if not 4096 <= rate <= TIB:
        raise told(f"expected 4KiB/s to 1TiB/s, got {quote(value)}")
    return rate


def operation_rate(value: Any) -> int:
    text = int(value) if isinstance(value, str) and value.isdigit() and len(value) < 12 else value
    if not isinstance(text, int) or isinstance(text, bool) or not 1 <= text <= 10**9:
        raise told(f"expected a number of operations per second, got {quote(value)}")
    return text


def disk_serial(value: Any) -> str:
    if not isinstance(value, str) or not _SERIAL.fullmatch(value):
        raise told(f"expected at most 20 letters, digits, '-' and '_', got {quote(value)}")
    return value


def file_mode(value: Any) -> str:
    """Return four octal digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise told(f"expected a text of octal digits like '0644', got {value}", "write it in quotes")
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise told(f"expected octal digits like '0644' or '0755', got {quote(value)}")
    return f"{int(value, 8):04o}"


def file_text(value: Any) -> str:
    if not isinstance(value, str):
        raise told(f"expected text, got {quote(value)}")
    try:
        _bounded_content(len(value.encode()))
    except UnicodeEncodeError:
        raise told("expected text in UTF-8", "bytes go in content_base64") from None
    return value


def user_data(value: Any) -> str:
    """Return cloud-init's user-data, without a byte order mark: cloud-init ignores user-data with one."""
    text = file_text(value).removeprefix("\ufeff")
    if not text.startswith(_USER_DATA) and not _MIME.match(text):
        first = text.partition("\n")[0]
        hint = "user-data begins with #cloud-config, #! or another cloud-init header, or is a MIME message"
        raise told(f"cloud-init ignores user-data that begins with {quote(first)}", hint)
    return text


def file_base64(value: Any) -> str:
    if not isinstance(value, str):
        raise told(f"expected base64, got {quote(value)}")
    try:
        _bounded_content(len(base64.b64decode(value, validate=True)))
    except (binascii.Error, ValueError):
        raise told("expected base64") from None
    return value


def _bounded_content(size_bytes: int) -> None:
    if size_bytes > MOST_FILE_BYTES:
        most = format_size(MOST_FILE_BYTES)
        hint = "copy larger files with `bough cp`"
        raise told(f"expected at most {most}, got {format_size(size_bytes)}", hint)


def variable_name(value: Any) -> str:
    if not isinstance(value, str) or not _VARIABLE.fullmatch(value):
        raise told("expected a variable's name: letters, digits and '_', not starting with a digit")
    return value


def variable_value(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise told(f"expected text, got {quote(value)}", f'write it in quotes: "{str(value)[:40]}"')
    if not isinstance(value, str):
        raise told(f"expected text, got {quote(value)}")
    if "\0" in value or "\n" in value or len(value) > 65536:
        raise told(f"expected one line of at most 65536 characters, got {quote(value)}")
    return value


def shell_command(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise told(f"expected a shell command, got {quote(value)}")
    if "\0" in value or len(value) > 65536:
        raise told("expected a shell command of at most 65536 characters, without NUL")
    return value


def words(value: Any) -> tuple[str, ...]:
    """Return the words of a program, from a list or from a text that is split as a shell does."""
    if isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError:
            raise told(f"expected a text with closed quotes, got {quote(value)}") from None
    if not isinstance(value, list | tuple) or not all(
        isinstance(one, str) and "\0" not in one for one in value
    ):
        raise told(f"expected a list of words without NUL, or a text, got {quote(value)}")
    given = [str(word) for word in value]
    if len(given) > MOST_WORDS or sum(len(word) for word in given) > MOST_WORDS_CHARS:
        raise told(f"expected at most {MOST_WORDS} words of {MOST_WORDS_CHARS} characters in all")
    if given and not given[0].strip():
        raise told("expected a program first, got an empty word", "[] stands for none")
    return tuple(given)


def program_user(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32:
        value = str(value)
    if not isinstance(value, str) or not _PROGRAM_USER.fullmatch(value):
        raise told(f"expected a user like 'www-data', '1000' or '1000:1000', got {quote(value)}")
    return value


def working_directory(value: Any) -> str:
    _printable(value, "an absolute path")
    if not value.startswith("/"):
        raise told(f"expected the absolute path of a directory like '/srv', got {quote(value)}")
    if len(value.encode()) > 4095:
        raise told("expected a path of at most 4095 bytes")
    return posixpath.normpath(f"/{str(value).lstrip('/')}")


def port(value: Any) -> dict[str, Any]:
    """Read a forwarded port from "8080:80", "127.0.0.1:2222:22", "80" (any free host port), or a table."""
    if isinstance(value, dict):
        return value
    example = "expected a port like '8080:80' or '127.0.0.1:2222:22'"
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or len(value) > 80:
        raise told(f"{example}, got {quote(value)}")
    text = value.removesuffix("/tcp")
    if text.endswith("/udp"):
        raise told(f"only TCP ports are forwarded, got {quote(value)}")
    match = re.fullmatch(r"(?:(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[^:]*):)?(?P<outer>\d*):)?(?P<inner>\d+)", text)
    if match is None:
        raise told(f"{example}, got {quote(value)}", "put an IPv6 address in brackets: '[::1]:8080:80'")
    found: dict[str, Any] = {"host_port": int(match["outer"] or 0), "guest_port": int(match["inner"])}
    if match["host"]:
        found["host"] = match["host"].strip("[]")
    return found


def port_host(value: Any) -> str:
    if value == "localhost":
        return "127.0.0.1"
    try:
        if not isinstance(value, str):
            raise ValueError
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise told(f"expected an address of this host like '127.0.0.1', got {quote(value)}") from None


def host_port(value: Any) -> int:
    return _port_number(value, 0)


def guest_port(value: Any) -> int:
    return _port_number(value, 1)


def _port_number(value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 65535:
        raise told(f"expected a port from {least} to 65535, got {quote(value)}")
    return value


def _printable(value: Any, expected: str) -> None:
    if not isinstance(value, str) or not value or _CONTROL.search(value):
        raise told(f"expected {expected}, got {quote(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise told(f"expected {expected} in UTF-8, got {quote(value)}") from None
