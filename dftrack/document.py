"""A document of headings, paragraphs, tables and pictures, written as Markdown or as one self-contained HTML page."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: #1c1c1c; background: #fff;
  max-width: 60rem; margin: 2rem auto; padding: 0 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 0.5rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 0.6rem; padding-bottom: 0.25rem; border-bottom: 1px solid #ddd; }
p { margin: 0.5rem 0; overflow-wrap: anywhere; }
.key { padding: 0.7rem 1rem; border-left: 4px solid #0072b2; background: #eef5fa; font-size: 1.08rem; }
.wide { overflow-x: auto; margin: 0.75rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.75rem; border-bottom: 1px solid #e4e4e4; text-align: left; vertical-align: top; }
th { background: #f5f5f5; white-space: nowrap; } td.number { text-align: right; white-space: nowrap; }
td { overflow-wrap: break-word; max-width: 28rem; }
pre { background: #f5f5f5; padding: 0.7rem 1rem; overflow-x: auto; font-size: 0.88rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: 0.92rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; margin: 1rem 0; }
.card { border: 1px solid #ddd; border-radius: 6px; overflow: hidden; font-size: 0.85rem; line-height: 1.4; }
.card img { display: block; width: 100%; height: auto; background: #f5f5f5; }
.card p { margin: 0.35rem 0.7rem; } .card p:first-of-type { font-weight: 600; }
"""
NUMBER = re.compile(r"[-+]?[\d,.]+(e[-+]?\d+)?( ?%| s| min| h)?")


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    level: Literal[1, 2] = 2


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph; `key`: the answer a hurried reader looks for."""

    text: str
    key: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of words."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Commands:
    """Lines to type."""

    lines: Sequence[str]


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG; Markdown, which cannot hold it, leaves it out."""

    caption: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Card:
    """A small picture with lines of text below, the first one in bold; Markdown leaves the picture out."""

    lines: Sequence[str]
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Cards:
    """Cards side by side."""

    cards: Sequence[Card]


Block = Heading | Words | Grid | Commands | Picture | Cards


def to_markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; whatever the texts hold is shown literally."""
    parts = (_markdown(block) for block in blocks)
    return "\n\n".join(part for part in parts if part) + "\n"


def to_html(blocks: Sequence[Block], title: str) -> str:
    """One page without scripts and without anything from elsewhere; whatever the texts hold is shown literally."""
    body = "\n".join(map(_html, blocks))
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Words(text, key):
            return f"**{_plain(text)}**" if key else _plain(text)
        case Grid(columns, rows):
            lines = [columns, ["---"] * len(columns), *rows]
            return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
        case Commands(lines):
            fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", "\n".join(lines))), default=0))
            return "\n".join([f"{fence}sh", *lines, fence])
        case Picture():
            return ""
        case Cards(cards):
            return "\n".join(f"- {_plain('; '.join(card.lines))}" for card in cards)


def _cell(text: str) -> str:
    return "---" if text == "---" else _plain(text)


def _plain(text: str) -> str:
    """Text with everything that Markdown or HTML would read as markup made literal, on one line."""
    literal = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[\]|~#]|(?<!\w)_|_(?!\w))", r"\\\1", literal)


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Words(text, key):
            return ('<p class="key">' if key else "<p>") + f"{html.escape(text)}</p>"
        case Grid(columns, rows):
            head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
            numeric = [all(NUMBER.fullmatch(row[place]) for row in rows) for place in range(len(columns))]
            body = "".join("<tr>" + "".join(map(_html_cell, row, numeric)) + "</tr>\n" for row in rows)
            return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        case Commands(lines):
            return f"<pre>{html.escape(chr(10).join(lines))}</pre>"
        case Picture(caption, png):
            source = base64.b64encode(png).decode()
            text = html.escape(caption)
            return (
                f'<figure><img src="data:image/png;base64,{source}" alt="{text}">'
                f"<figcaption>{text}</figcaption></figure>"
            )
        case Cards(cards):
            return f'<div class="cards">{"".join(map(_html_card, cards))}</div>'


def _html_card(card: Card) -> str:
    source = base64.b64encode(card.jpeg).decode()
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in card.lines)
    alt = html.escape(card.lines[0] if card.lines else "")
    return f'<div class="card"><img loading="lazy" src="data:image/jpeg;base64,{source}" alt="{alt}">{lines}</div>'


def _html_cell(text: str, is_number: bool) -> str:
    return ('<td class="number">' if is_number else "<td>") + f"{html.escape(text)}</td>"
