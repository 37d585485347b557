"""A list of objects in a JSON file that is too large for memory, one element at a time."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from common.errors import UserError
from data.files import not_json


def iterate(path: str | Path, chunk_bytes: int = 1 << 22) -> Iterator[tuple[Any, int, int]]:
    """(element, its first byte, its length in bytes) for each element of the list that the file holds.

    Memory: a few times ``chunk_bytes``, or the largest element. Raises ``UserError`` where the file is cut off or wrong.
    """
    with open(path, "rb") as file, tqdm(desc=f"reading {Path(path).name}", total=Path(path).stat().st_size, unit="B",
                                        unit_scale=True, unit_divisor=1024, delay=1) as bar:
        window = _Window(file, Path(path), chunk_bytes, bar)
        window.expect("[")
        separator = "]" if window.peek() == "]" else ","
        if separator == "]":
            window.expect("]")
        while separator == ",":
            window.peek()
            start, value = window.place, window.value()
            yield value, start, window.place - start
            separator = window.expect(",]")
        if window.peek():
            raise window.error("text behind the list's end")


class _Window:
    """A part of the file, decoded; ``place`` is the byte of the next character that has not been used."""

    def __init__(self, file: IO[bytes], path: Path, chunk_bytes: int, bar: tqdm):
        self.place = 0
        self._file, self._path, self._chunk_bytes, self._bar = file, path, chunk_bytes, bar
        self._text, self._next = "", 0  # _text[_next:] has not been used
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._scan = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no white space, which is passed over; empty at the end of the file."""
        while True:
            while self._next < len(self._text):
                if self._text[self._next] not in " \t\r\n":
                    return self._text[self._next]
                self._use(self._next + 1)
            if not self._more():
                return ""

    def expect(self, characters: str) -> str:
        """Use the next character, which must be one of these."""
        character = self.peek()
        if not character or character not in characters:
            raise self.error(f"expected {' or '.join(characters)}, found {character or 'its end'}")
        self._use(self._next + 1)
        return character

    def value(self) -> Any:
        """Use the JSON value that begins here."""
        while True:
            try:
                value, end = self._scan(self._text, self._next)
            except json.JSONDecodeError as error:
                # What the window's edge cuts through ends in such an error, and is whole in a wider window.
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 16
                if not cut or not self._more():
                    raise self.error(error.msg) from error
            else:
                self._use(end)
                return value

    def error(self, message: str) -> UserError:
        return not_json(self._path, f"{message}, in what begins at byte {self.place:,}")

    def _use(self, end: int) -> None:
        self.place += len(self._text[self._next:end].encode())
        self._next = end

    def _more(self) -> bool:
        """Widen the window; doubling keeps the repeated scans of one large element cheap. False at the file's end."""
        rest = self._text[self._next:]
        chunk = self._file.read(max(self._chunk_bytes, len(rest)))
        self._bar.update(len(chunk))
        try:
            self._text, self._next = rest + self._decode(chunk, final=not chunk), 0
        except UnicodeDecodeError as error:
            raise self.error(str(error)) from error
        return bool(chunk)
