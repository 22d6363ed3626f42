"""A TOML file that remembers on which line each key stands, so that an error can point at it."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dftrack.errors import SettingError

_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]\]?\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED})\s*=(.*)$", re.DOTALL)
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|' + r"'[^']*'")
_AT_LINE = re.compile(r"\(at line (\d+), column \d+\)|\(at end of document\)")

Path_ = tuple[str, ...]  # the keys that lead to a value; elements of an array of tables count as "0", "1", ...


@dataclass(frozen=True, slots=True)
class TomlFile:
    """What a TOML file says, and where."""

    name: str  # as errors show it
    text: str
    content: dict[str, Any]
    lines: dict[Path_, int]  # from 1

    def error(self, path: Path_, message: str, hint: str = "") -> SettingError:
        """An error that points at the line of `path`, or of the nearest table around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return SettingError(f"{self.name}:{self.lines.get(path, 1)}: {message}", hint)


def read_toml(path: Path) -> TomlFile:
    """Read the file. Raises SettingError if it cannot be read or is no TOML, with the line where that shows."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingError(f"cannot read the study file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is not a text file in UTF-8 (byte {error.start})") from error
    return parse_toml(text, str(path))


def parse_toml(text: str, name: str) -> TomlFile:
    """Like `read_toml`, from text; errors call it `name`."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _AT_LINE.search(str(error))
        line = int(place[1]) if place and place[1] else text.count("\n") + 1
        reason = _AT_LINE.sub("", str(error)).strip()
        raise SettingError(f"{name}:{line}: not valid TOML: {reason}", "see https://toml.io for the rules") from error
    return TomlFile(name, text, content, _find_lines(text))


def _find_lines(text: str) -> dict[Path_, int]:
    """Key path -> line. Keys within an inline table are not listed: they stand on the line of the table."""
    found: dict[Path_, int] = {}
    counts: dict[Path_, int] = {}  # elements seen of each array of tables
    table: Path_ = ()
    depth = 0  # brackets still open at the end of the line before
    fence = ""  # of a multi-line string that is still open
    for number, line in enumerate(text.splitlines(), start=1):
        if fence:
            fence = "" if fence in line else fence
        elif depth > 0:
            depth += _brackets(line)
        elif header := _HEADER.match(line):
            table = _keys(header[2])
            if header[1] == "[[":
                found.setdefault(table, number)
                counts[table] = counts.get(table, -1) + 1
                table = (*table, str(counts[table]))
            _note(found, table, 0, number)
        elif assignment := _ASSIGNMENT.match(line):
            _note(found, table + _keys(assignment[1]), len(table), number)
            value = assignment[2].strip()
            fence = next((f for f in ('"""', "'''") if value.startswith(f) and value.count(f) == 1), "")
            depth = 0 if fence else max(0, _brackets(value))
    return found


def _note(found: dict[Path_, int], path: Path_, start: int, number: int) -> None:
    for end in range(start + 1, len(path) + 1):
        found.setdefault(path[:end], number)


def _keys(dotted: str) -> Path_:
    return tuple(key.strip("\"'") for key in re.findall(_KEY, dotted))


def _brackets(line: str) -> int:
    bare = _QUOTED.sub("", line).split("#", 1)[0]
    return bare.count("[") + bare.count("{") - bare.count("]") - bare.count("}")
