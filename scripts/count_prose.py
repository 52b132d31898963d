"""Measure the prose of this tree: python scripts/count_prose.py [--worst N] [PATH ...]

Prose is docstrings, comments, and text of Markdown pages outside code and tables. The script prints for each
path:
words, pronouns and relative words in percent, commas a sentence, words a sentence, and the share of
docstrings that open with a pronoun, a preposition or a question word. The bounds are those of well-written
code bases (3.8 to 6.5 %, 0.3 to 0.9, 11 to 14, 0 to 1 %, measured by this script).
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PRONOUNS = frozenset(
    """i you he she it we they me him her us them its his their theirs ours yours who whom whose whoever what
    whatever which that this these those one ones none nobody somebody everybody anybody nothing something
    everything anything itself themselves himself where whereby there here""".split()  # noqa: SIM905
)
OPENERS = PRONOUNS - {"this", "there", "here", "nothing", "you"} | frozenset(
    "of for from in on at by to with without as until before after above below how".split()  # noqa: SIM905
)
BOUNDS = {"pronouns_percent": 6.5, "commas": 0.9, "words": 14.0, "openers_percent": 1.0}
_SENTENCE = re.compile(r"(?<=[.!?:])\s+")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
_CODE = re.compile(r"`[^`]*`|\S+\(\)|https?://\S+|\b\w+[./_]\w\S*")


@dataclass
class Count:
    """Sums over the prose of one path."""

    words: int = 0
    pronouns: int = 0
    commas: int = 0
    sentences: int = 0
    docstrings: int = 0
    openers: int = 0
    worst: list[tuple[float, str]] = field(default_factory=list)

    def add(self, text: str, place: str) -> None:
        for sentence in _SENTENCE.split(" ".join(_CODE.sub("x", text).split())):
            words = [word.lower() for word in _WORD.findall(sentence)]
            if len(words) < 3:
                continue
            pronouns = sum(word in PRONOUNS for word in words)
            self.words += len(words)
            self.pronouns += pronouns
            self.commas += sentence.count(",")
            self.sentences += 1
            weight = pronouns + sentence.count(",") + max(0, len(words) - 25)
            self.worst.append((weight, f"{place}: {sentence[:160]}"))

    def add_docstring(self, text: str, place: str) -> None:
        first = _WORD.match(text.strip())
        self.docstrings += 1
        self.openers += bool(first and first[0].lower() in OPENERS)
        self.add(text, place)

    @property
    def figures(self) -> dict[str, float]:
        return {
            "pronouns_percent": 100 * self.pronouns / max(1, self.words),
            "commas": self.commas / max(1, self.sentences),
            "words": self.words / max(1, self.sentences),
            "openers_percent": 100 * self.openers / max(1, self.docstrings),
        }


def count_python(path: Path, count: Count) -> None:
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                count.add_docstring(_plain(text), f"{path}:{getattr(node, 'lineno', 1)}")
    for line, text in _comments(source):
        count.add(text, f"{path}:{line}")


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield comments; consecutive lines are one comment."""
    block: list[str] = []
    start = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or re.match(r"#\s*(noqa|type:|fmt:|!|--)", token.string):
            continue
        if token.start[0] != last + 1 and block:
            yield start, " ".join(block)
            block = []
        start = start if block else token.start[0]
        last = token.start[0]
        block.append(token.string.lstrip("#: "))
    if block:
        yield start, " ".join(block)


def count_markdown(path: Path, count: Count) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "#", "![", "  |"))]
    for paragraph in "\n".join(lines).split("\n\n"):
        count.add(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", paragraph).replace("**", ""), str(path))


def _plain(text: str) -> str:
    """Return a docstring without indented blocks, drawings, tables and lists in two columns."""
    table = re.compile(r"\s{4,}\S|\s*[|├└│>]|\s*\S+\s{3,}\S")
    return "\n".join(line for line in text.splitlines() if not table.match(line))


def files_of(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_file():
            yield path
        else:
            yield from sorted(p for p in path.rglob("*") if p.suffix in (".py", ".md"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--worst", type=int, default=0, help="also print the N sentences that read worst")
    options = parser.parse_args()
    default = [Path(name) for name in ("README.md", "docs", *sorted(map(str, Path("src/bough").iterdir())))]
    total = Count()
    print(f"{'path':32} {'words':>7} {'pronouns':>9} {'commas':>7} {'length':>7} {'openers':>8}")
    for path in [p for p in options.paths or default if p.is_dir() or p.suffix in (".py", ".md")]:
        count = Count()
        for file in files_of([path]):
            if "__pycache__" not in file.parts and file.name != "cli.md":
                (count_python if file.suffix == ".py" else count_markdown)(file, count)
        _print(str(path), count)
        for name in ("words", "pronouns", "commas", "sentences", "docstrings", "openers", "worst"):
            setattr(total, name, getattr(total, name) + getattr(count, name))
    _print("all", total)
    for _, text in sorted(total.worst, reverse=True)[: options.worst]:
        print(f"  {text}")
    sys.exit(any(total.figures[name] > bound for name, bound in BOUNDS.items()))


def _print(name: str, count: Count) -> None:
    found = count.figures
    print(
        f"{name[-32:]:32} {count.words:7} {found['pronouns_percent']:7.1f} % {found['commas']:7.2f} "
        f"{found['words']:7.1f} {found['openers_percent']:6.1f} %"
    )


if __name__ == "__main__":
    main()
