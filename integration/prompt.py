"""The shell on a terminal of its own, whose screen is read as a user sees it."""

from __future__ import annotations

import os
import re
import select
import time

from integration.cli import Screen

_TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b.|(.)", re.DOTALL)
PROMPT = "qmp>"


class Canvas:
    """What is on a terminal after it was written to; as long as need be, so nothing scrolls away."""

    def __init__(self):
        self.rows, self.row, self.column = [""], 0, 0

    def write(self, text):
        for found in _TOKEN.finditer(text):
            numbers, code, char = found.groups()
            if code is not None:
                self._control(code, numbers)
            elif char == "\r":
                self.column = 0
            elif char == "\n":
                self._go(self.row + 1)
            elif char == "\b":
                self.column = max(self.column - 1, 0)
            elif char is not None and char.isprintable():
                line = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = line[: self.column] + char + line[self.column + 1 :]
                self.column += 1

    def _control(self, code, numbers):
        amount = int(numbers) if numbers.isdecimal() else 0
        if code == "A":
            self._go(max(self.row - max(amount, 1), 0))
        elif code == "B":
            self._go(self.row + max(amount, 1))
        elif code == "C":
            self.column += max(amount, 1)
        elif code == "D":
            self.column = max(self.column - max(amount, 1), 0)
        elif code == "G":
            self.column = max(amount, 1) - 1
        elif code in "JK" and amount == 0:
            self.rows[self.row] = self.rows[self.row].ljust(self.column)[: self.column]
            if code == "J":
                del self.rows[self.row + 1 :]
        else:
            assert code in "hlmnqtu", f"a control code that is not known here: {numbers}{code}"

    def _go(self, row):
        self.row = row
        self.rows += [""] * (row + 1 - len(self.rows))


class Prompt(Screen):
    """A shell of which the test types the lines.

    Attributes:
        line: The line with the cursor: the prompt, and what was typed after it.
    """

    def __init__(self, cli, *words):
        cli.environment |= {"PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(cli.machine.folder)}
        super().__init__(cli, "shell", *words, columns=160, lines=40)
        self._canvas, self._began = Canvas(), 0
        self.raw = ""  # all that was written to the terminal
        self._until(lambda: self.line == PROMPT, "the prompt")

    @property
    def line(self):
        return self._canvas.rows[self._canvas.row].rstrip()

    @property
    def text(self):
        """What was written since the last line was begun; blanks and ends of lines as one blank each."""
        return " ".join(" ".join(self._canvas.rows[self._began :]).split())

    def enter(self, typed, *expected):
        """Type a line; return what has come when all expected texts are there and the shell prompts again."""
        self._began = self._canvas.row
        self.type(f"{typed}\r")
        self._until(
            lambda: all(text in self.text for text in expected) and self.line == PROMPT, (typed, *expected)
        )
        return self.text

    def complete(self, typed, whole):
        """Type the beginning of a line, and Tab until the line is whole.

        Tab offers no names of the machine if that is slow to give them; it is typed again then.
        """
        self._began = self._canvas.row
        self.type(typed)
        until = time.monotonic() + 60
        while self.line != f"{PROMPT} {whole}":
            assert time.monotonic() < until, self._canvas.rows[self._began :]
            self.type("\t")
            again = time.monotonic() + 3
            while self.line != f"{PROMPT} {whole}" and self._more_by(again):
                pass

    def offers(self, typed, *words):
        """Type the beginning of a line and Tab; wait for the words of the menu, and drop the line."""
        self._began = self._canvas.row
        self.type(f"{typed}\t")
        self._until(lambda: all(word in self.text.split() for word in words), words)
        self.drop()

    def sees(self, text):
        """Wait for a text that comes by itself, until the shell prompts below it.

        While it comes, the terminal is not the prompt's: it would echo what is typed, and obey Ctrl-C.
        """
        self._until(lambda: text in self.text and self.line == PROMPT, text)

    def drop(self):
        """Ctrl-C."""
        self.type("\x03")
        self._until(lambda: self.line == PROMPT, "the prompt after Ctrl-C")

    def ended(self):
        """Wait for the end of the shell; return its exit code and what has come."""
        until = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < until, self.text
            self._more_by(time.monotonic() + 0.1)
        while self._more_by(0):
            pass
        return self.process.returncode, self.text

    def _until(self, holds, wanted):
        until = time.monotonic() + 60
        while not holds():
            assert self._more_by(until), f"{wanted} did not come: {self._canvas.rows[self._began :]}"

    def _more_by(self, until):
        """Read what was written; False if nothing came by then."""
        if not select.select([self.ours], [], [], max(until - time.monotonic(), 0))[0]:
            return False
        read = os.read(self.ours, 65536).decode()
        self.raw += read
        self._canvas.write(read)
        return True
