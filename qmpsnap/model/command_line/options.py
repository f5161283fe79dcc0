"""Splits a command line into options, and an option's value, `key=value,...` or JSON, into keys."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from qmpsnap.errors import Unsupported
from qmpsnap.model.option_hints import Hint, Named

# qemu-options.hx: the options without HAS_ARG, of QEMU 7.2 to 11.1.
_WITHOUT_VALUE: Final = frozenset(
    {"S", "s", "h", "help", "version", "snapshot", "no-fd-bootchk", "no-acpi", "no-hpet", "nographic"}
    | {"portrait", "full-screen", "no-user-config", "nodefaults", "enable-kvm", "no-reboot", "no-shutdown"}
    | {"daemonize", "preconfig", "only-migratable", "enable-sync-profile", "singlestep", "win2k-hack"}
    | {"mem-prealloc", "usb", "alt-grab", "ctrl-grab", "no-quit", "audio-help", "xen-attach", "perfmap"}
    | {"xen-domid-restrict", "async-teardown", "jitdump", "semihosting", "enable-fips", "curses", "sdl"}
)
_DEEPEST: Final = 200  # brackets of JSON in one value; a node has a few
_PROGRAM: Final = re.compile(r"qemu-system-[\w.-]+|qemu-kvm")

Pairs = list[tuple[str, str]]
"""Keys with their values, in order; a key may come more than once."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a command line.

    Attributes:
        name: Its name with a single dash, as in "-drive"; "": the value is an image's path without an option.
        value: Its value; None: it takes none.
    """

    name: str
    value: str | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """Return the option as words of a command line."""
        name = (self.name,) if self.name else ()
        return name if self.value is None else (*name, self.value)

    def refuse(self, why: str) -> NoReturn:
        """Raise that another QEMU cannot have this option.

        Raises:
            Unsupported: Always; the message names the option.
        """
        text = " ".join(self.words)
        raise Unsupported(
            f"another QEMU cannot be started with {text!r}: {why}",
            feature=text,
            hint=Hint(Named("launcher"), ", a function that starts such a QEMU from a qmpsnap.Start"),
        )


def split(argv: Sequence[str]) -> tuple[list[str], list[Option]]:
    """Split a command line into the program, with any wrapper before it, and its options."""
    first = next((n for n, word in enumerate(argv) if _PROGRAM.fullmatch(posixpath.basename(word))), 0)
    options: list[Option] = []
    words = iter(argv[first + 1 :])
    for word in words:
        if not word.startswith("-") or word == "-":
            options.append(Option("", word))
            continue
        name = word[1:] if word.startswith("--") else word
        options.append(Option(name, None if name[1:] in _WITHOUT_VALUE else next(words, None)))
    return list(argv[: first + 1]), options


def read_keys(option: Option, implied: str = "") -> Pairs:
    """Return the keys of an option's value; nested keys of JSON are joined by dots.

    Args:
        option: The option.
        implied: The key of a first value without a key; "": there is no such key.

    Raises:
        Unsupported: When it cannot be read.
    """
    text = option.value or ""
    return list(_flat(read_json(option))) if is_json(text) else _split_keys(text, implied)


def is_json(text: str) -> bool:
    """Whether a value is JSON."""
    return text.lstrip().startswith("{")


def read_json(option: Option) -> dict[str, object]:
    """Parse an option's value, which is JSON.

    Raises:
        Unsupported: When it is not.
    """
    text = option.value or ""
    if text.count("{") + text.count("[") > _DEEPEST:
        option.refuse("it is nested too deeply")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        option.refuse("it is not JSON")
    if not isinstance(data, dict):
        option.refuse("it is not a JSON object")
    return data


def write_keys(keys: Iterable[tuple[str, str]], implied: str = "") -> str:
    """Return the keys as an option's value; the inverse of `read_keys`."""
    words = []
    for number, (key, value) in enumerate(keys):
        doubled = value.replace(",", ",,")
        words.append(doubled if number == 0 and key == implied and "=" not in value else f"{key}={doubled}")
    return ",".join(words)


def last(keys: Iterable[tuple[str, str]], key: str, default: str = "") -> str:
    """Return the value of a key; of several values the last counts, as in QEMU."""
    return dict(keys).get(key, default)


def machine_key(options: Iterable[Option], key: str) -> str:
    """Return a property of the machine, as -machine gives it; "" if it does not.

    Raises:
        Unsupported: When an option cannot be read.
    """
    value = ""
    for option in options:
        if option.name in {"-machine", "-M"}:
            value = last(read_keys(option, "type"), key, value)
    return value


def keep_only(option: Option, implied: str, keep: Callable[[str], bool]) -> Option:
    """Return the option with only the keys in `keep`; of a nested key the first part counts.

    Raises:
        Unsupported: When it cannot be read.
    """
    text = option.value or ""
    if is_json(text):
        return Option(option.name, json.dumps({k: v for k, v in read_json(option).items() if keep(k)}))
    pairs = _split_keys(text, implied)
    if all(keep(key.partition(".")[0]) for key, _ in pairs):
        return option
    return Option(option.name, write_keys([(k, v) for k, v in pairs if keep(k.partition(".")[0])], implied))


def _split_keys(text: str, implied: str) -> Pairs:
    """Split as QEMU's util/qemu-option.c: a key without a value is on, or off if it begins with "no"."""
    pairs: Pairs = []
    for number, part in enumerate(_parts(text)):
        key, equals, value = part.partition("=")
        if equals:
            pairs.append((key.replace(",,", ","), value.replace(",,", ",")))
        elif number == 0 and implied:
            pairs.append((implied, part.replace(",,", ",")))
        elif part.startswith("no"):
            pairs.append((part[2:], "off"))
        elif part:
            pairs.append((part, "on"))
    return pairs


def _parts(text: str) -> list[str]:
    """Split at single commas; a doubled comma belongs to a value."""
    return [part.replace("\0", ",,") for part in text.replace(",,", "\0").split(",")]


def _flat(data: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in data.items():
        match value:
            case dict():
                yield from _flat(value, f"{prefix}{key}.")
            case list():
                yield from _flat({str(number): item for number, item in enumerate(value)}, f"{prefix}{key}.")
            case bool():
                yield f"{prefix}{key}", "on" if value else "off"
            case _:
                yield f"{prefix}{key}", str(value)
