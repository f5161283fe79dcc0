from __future__ import annotations

import pytest

from qmpsnap.model.console_text import has_halted, has_panicked, last_lines

REASON = "[    5.1] Kernel panic - not syncing: sysrq triggered crash"
TRACE = "".join(f"[    5.2]  ? trace+{number}\r\n" for number in range(20))
END = "[    5.3] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---"
PANICKED = f"before\r\n{REASON}\r\n{TRACE}{END}\r\n"


@pytest.mark.parametrize(
    ("printed", "lines"),
    [
        ("\x1b[1;32mDebian\x1b[0m\r\n\r\nvm login: \x07", "Debian\nvm login:"),
        ("\x1b]0;title\x07a\x1b(Bb\x1b[?2004hc\rd", "abc\nd"),
        ("".join(f"{line}\n" for line in range(20)), "\n".join(map(str, range(5, 20)))),
        ("", ""),
        (PANICKED, "\n".join([REASON, "...", *(f"[    5.2]  ? trace+{n}" for n in range(8, 20)), END])),
        (f"a\n{REASON}\nRebooting", f"a\n{REASON}\nRebooting"),
        (f"{PANICKED}{TRACE * 4}", "\n".join(f"[    5.2]  ? trace+{n}" for n in range(5, 20))),
    ],
)
def test_last_lines_are_text_and_name_the_reason_of_a_panic(printed, lines):
    assert last_lines(printed) == lines


@pytest.mark.parametrize(
    ("before", "text", "panicked"),
    [
        ("", PANICKED, True),
        ("before\r\n", PANICKED, True),
        (PANICKED, PANICKED, False),
        (PANICKED, f"{PANICKED}init runs\r\n", False),
        (PANICKED, f"{PANICKED}init runs\r\n{REASON}", True),
        ("x" * 300 + PANICKED, f"{PANICKED}init runs\r\n", False),
        ("gone", PANICKED, True),
        ("", "init runs", False),
    ],
)
def test_panic_counts_if_it_is_new(before, text, panicked):
    assert has_panicked(text, before=before) is panicked


@pytest.mark.parametrize(("text", "halted"), [(PANICKED, True), (f"{PANICKED}init runs", False), ("", False)])
def test_kernel_has_halted_if_its_last_line_says_so(text, halted):
    assert has_halted(text) is halted
