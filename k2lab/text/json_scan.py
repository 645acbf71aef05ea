"""Finds the end of a JSON value in text that arrives in pieces.

One pass, no recursion, constant memory apart from one byte per level of nesting. It checks the
grammar of RFC 8259 with one licence: control characters may stand inside strings, since models
write raw line breaks there. It builds no values.
"""

import re
from typing import Literal

Status = Literal["open", "complete", "failed"]

_STRING_STOP = re.compile(r'["\\]')
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")
_LITERAL = re.compile(r"[-+.0-9A-Za-z]*")
_VALID_LITERAL = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_ESCAPED = frozenset('"\\/bfnrt')
_HEX = frozenset("0123456789abcdefABCDEF")
_OBJECT, _ARRAY = ord("{"), ord("[")


class JsonScanner:
    """Reads one value; `status` tells whether it is open, complete or failed."""

    def __init__(self) -> None:
        """At the beginning of a value, or of white space before it."""
        self.status: Status = "open"
        self.offset = 0  # characters read so far; in the end, up to the value's end or the failure
        self._expect = "value"  # value, first value, key, first key, colon, after,
        #                         string, escape, hex or literal
        self._levels = bytearray()
        self._is_key = False
        self._digits = 0  # hexadecimal digits still to come
        self._literal: list[str] = []

    def feed(self, text: str, position: int = 0) -> int:
        """Where reading stopped: after the value, at the wrong character, or at the end."""
        start, length = position, len(text)
        while position < length and self.status == "open":
            if self._expect == "string":
                position = self._string(text, position)
            elif self._expect == "literal":
                position = self._more_literal(text, position)
            elif self._expect in ("escape", "hex"):
                self._escape(text[position])
                position += self.status == "open"
            else:
                position = self._structure(text, position)
        self.offset += position - start
        return position

    def end(self) -> Status:
        """The status when no more text comes: a number at the top level is then complete."""
        if self.status == "open" and self._expect == "literal":
            self._end_literal()
        return self.status

    def _string(self, text: str, position: int) -> int:
        stop = _STRING_STOP.search(text, position)
        if stop is None:
            return len(text)
        if stop.group() == "\\":
            self._expect = "escape"
        elif self._is_key:
            self._expect = "colon"
        else:
            self._end_value()
        return stop.end()

    def _escape(self, character: str) -> None:
        if self._expect == "escape":
            if character == "u":
                self._expect, self._digits = "hex", 4
            elif character in _ESCAPED:
                self._expect = "string"
            else:
                self.status = "failed"
        elif character in _HEX:
            self._digits -= 1
            if not self._digits:
                self._expect = "string"
        else:
            self.status = "failed"

    def _more_literal(self, text: str, position: int) -> int:
        match = _LITERAL.match(text, position)
        stop = position if match is None else match.end()
        self._literal.append(text[position:stop])
        if stop < len(text):
            self._end_literal()
        return stop

    def _end_literal(self) -> None:
        if _VALID_LITERAL.fullmatch("".join(self._literal)):
            self._literal.clear()
            self._end_value()
        else:
            self.status = "failed"
            self.offset -= sum(len(part) for part in self._literal)  # back to its first character

    def _end_value(self) -> None:
        self._expect = "after"
        if not self._levels:
            self.status = "complete"

    def _structure(self, text: str, position: int) -> int:
        white = _WHITE_SPACE.match(text, position)
        position = position if white is None else white.end()
        if position == len(text):
            return position
        character, expect = text[position], self._expect
        if expect == "after":
            closing = "}" if self._levels[-1] == _OBJECT else "]"
            if character == ",":
                self._expect = "key" if closing == "}" else "value"
            elif character == closing:
                self._close()
            else:
                self.status = "failed"
        elif expect == "colon":
            self._expect = "value"
            if character != ":":
                self.status = "failed"
        elif expect in ("key", "first key"):
            if character == '"':
                self._is_key, self._expect = True, "string"
            elif expect == "first key" and character == "}":
                self._close()
            else:
                self.status = "failed"
        elif character == "]" and expect == "first value":
            self._close()
        else:
            return self._value(text, position)
        return position + (self.status != "failed")

    def _value(self, text: str, position: int) -> int:
        character = text[position]
        if character == '"':
            self._is_key, self._expect = False, "string"
        elif character == "{":
            self._levels.append(_OBJECT)
            self._expect = "first key"
        elif character == "[":
            self._levels.append(_ARRAY)
            self._expect = "first value"
        elif _LITERAL.fullmatch(character):
            self._expect = "literal"
            return position  # the literal reads its first character itself
        else:
            self.status = "failed"
            return position
        return position + 1

    def _close(self) -> None:
        self._levels.pop()
        self._end_value()
