"""Keeps secrets out of what is written down, in a way that their owner can undo.

Each secret is replaced by a salted hash, in texts and in tokens. With the same secrets at hand the
text can be had again, so that a run can be resumed. A secret that is short or guessable can be
guessed from its hash; it is hidden from readers, not from somebody who knows what to try.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from k2lab.engine.events import Kind
from k2lab.engine.generate import Prompt, pieces
from k2lab.text.tokenizer import Tokenizer

SHORTEST = 4  # characters: anything shorter would be found everywhere


class Veil:
    """Hides some texts. `salt` makes the hashes of two runs differ."""

    def __init__(self, secrets: Iterable[str], salt: str) -> None:
        forms = {form for secret in secrets for form in _forms(secret) if len(form) >= SHORTEST}
        self._marks = {form: _mark(form, salt) for form in sorted(forms, key=len, reverse=True)}

    def hide(self, value: Any) -> Any:
        """The value, JSON types, with every secret in its texts replaced."""
        if isinstance(value, str):
            for form, mark in self._marks.items():
                value = value.replace(form, mark)
            return value
        if isinstance(value, dict):
            return {self.hide(name): self.hide(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(each) for each in value]
        return value

    def show(self, value: Any) -> Any:
        """The value as it was, as far as its secrets are among ours."""
        if isinstance(value, str):
            for form, mark in reversed(self._marks.items()):  # a later one may stand in a mark
                value = value.replace(mark, form)
            return value
        if isinstance(value, dict):
            return {self.show(name): self.show(each) for name, each in value.items()}
        return [self.show(each) for each in value] if isinstance(value, list) else value

    def hide_tokens(self, prompt: Prompt, tokenizer: Tokenizer) -> Any:
        """The tokens as JSON: ids with their kinds; texts where they would tell a secret."""
        text = "".join(prompt.texts)
        if self.hide(text) == text:
            runs = [[kind, len(list(run))] for kind, run in groupby(prompt.kinds)]
            return {"ids": list(prompt.ids), "kinds": runs}
        parts: list[list[Any]] = []
        for i, kind in zip(prompt.ids, prompt.kinds, strict=True):
            if tokenizer.is_special(i):
                parts.append([kind, i])
            elif parts and parts[-1][0] == kind and isinstance(parts[-1][1], list):
                parts[-1][1].append(i)
            else:
                parts.append([kind, [i]])
        return {
            "parts": [
                [kind, part if isinstance(part, int) else self.hide(tokenizer.decode(part))]
                for kind, part in parts
            ]
        }

    def show_tokens(self, hidden: Any, tokenizer: Tokenizer) -> Prompt:
        """The tokens again; where they were hidden, in the tokenizer's own division."""
        ids: list[int] = []
        kinds: list[Kind] = []
        if "ids" in hidden:
            ids += hidden["ids"]
            for kind, count in hidden["kinds"]:
                kinds += [kind] * count
        else:
            for kind, part in hidden["parts"]:
                more = [part] if isinstance(part, int) else tokenizer.encode(self.show(part))
                ids += more
                kinds += [kind] * len(more)
        return Prompt(tuple(ids), tuple(pieces(ids, tokenizer)), tuple(kinds))

    def missing(self, hidden: Any) -> bool:
        """Whether the value, JSON types, has a secret that is not among ours."""
        return _OPEN in json.dumps(self.show(hidden), ensure_ascii=False)


_OPEN, _CLOSE = "⟨secret sha256:", "⟩"


def _mark(form: str, salt: str) -> str:
    data = f"{salt}:{form}".encode("utf-8", "surrogatepass")
    return f"{_OPEN}{hashlib.sha256(data).hexdigest()}{_CLOSE}"


def _forms(secret: str) -> Sequence[str]:
    """The secret as it is, and as it stands inside JSON."""
    return (secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1])
