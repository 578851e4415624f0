"""How a page for people is put together: one HTML file that needs nothing beside it.

Stands under the report, which says what is on the page. Nothing is fetched: no script, no font, no link;
pictures are inside as data URIs and charts as SVG elements. Everything given as text is escaped here, once.
"""

from __future__ import annotations

import base64
import html
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from feddiff.core.errors import DataError

TEXT_SCALE = 1.3
"""Pixels on the page for a point of a chart, at most, so that text is of one size in all of them."""
PNG = b"\x89PNG\r\n\x1a\n"
STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1b1f24; --faint: #59636e;
  --line: #dde1e6; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1d2126; --ink: #e8eaed;
  --faint: #a0a8b2; --line: #363c44; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 76rem; background: var(--ground);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.2rem; }
.about, figcaption, .note { color: var(--faint); font-size: .875rem; }
.about { margin: .25rem 0 0; }
.note { max-width: 46rem; }
.figures { display: grid; grid-template-columns: repeat(4, 1fr); gap: .75rem;
  margin: 1.5rem 0 0; padding: 0; list-style: none; }
.figures li { padding: .75rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }
.figures strong { display: block; font-size: clamp(1rem, 2.2vw, 1.4rem); line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.figures span { color: var(--faint); font-size: .8125rem; line-height: 1.3; display: block; }
@media (max-width: 44rem) { .figures { grid-template-columns: 1fr 1fr; }
  figure { overflow-x: auto; } figure svg { min-width: 25rem; } figure.wide svg { min-width: 36rem; } }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: 1rem; background: #fff; color: #222; border: 1px solid var(--line);
  border-radius: .5rem; break-inside: avoid; min-width: 0; }
figure.wide { grid-column: 1 / -1; overflow-x: auto; }
figcaption { margin-bottom: .5rem; color: #4a535d; }
figcaption strong { color: #1b1f24; display: block; font-size: 1rem; }
figure svg { display: block; width: 100%; height: auto; margin: 0 auto; }
figure svg text { font-family: inherit !important; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
.pictures img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 1rem; }
.gallery img { display: block; width: 100%; height: auto; }
.still { display: none; }
@media (prefers-reduced-motion: reduce) { .moving { display: none; } .still { display: block; } }
@media print { .motion { display: none; } }
.swatch { display: inline-block; width: .7em; height: .7em; margin-right: .5em; border-radius: 2px;
  box-shadow: 0 0 0 1px var(--line); print-color-adjust: exact; }
.cards + .scroll { margin-top: 1rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .8rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th { color: var(--faint); font-weight: 600; border-top: 0; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 8rem; }
table.dense { font-size: .78rem; }
.dense th, .dense td { padding: .35rem; }
.dense th:first-child, .dense td:first-child { padding-left: .6rem; }
.dense th:last-child, .dense td:last-child { padding-right: .6rem; }
.dense th { white-space: normal; overflow-wrap: normal; vertical-align: bottom; line-height: 1.25; }
.dense td:first-child { white-space: nowrap; position: sticky; left: 0; background: var(--card); }
tr.group th { padding-top: 1rem; text-align: left; color: var(--ink); border-top: 1px solid var(--line); }
tr.sum td { font-weight: 600; border-top: 2px solid var(--line); }
details { margin-top: 2.5rem; padding: .75rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }
summary { cursor: pointer; font-weight: 600; }
pre { margin: .75rem 0 0; overflow-x: auto; font: .8125rem/1.45 ui-monospace, Menlo, Consolas, monospace;
  white-space: pre-wrap; }
@media print { body { background: #fff; padding: 0; max-width: none; font-size: 12px; }
  .scroll { overflow: visible; } .cards { grid-template-columns: 1fr 1fr; } .pictures { display: block; }
  .figures li, figure, tr { break-inside: avoid; } h2 { break-after: avoid; }
  .gallery { grid-template-columns: repeat(4, 1fr); } figure svg { max-height: 78mm; }
  tr.group { break-after: avoid; } .scroll { break-inside: avoid; }
  figure.wide svg { max-height: 140mm; } table.dense { font-size: .58rem; } .dense td { white-space: nowrap; }
  th, td { padding: .25rem .4rem; white-space: normal; } table { font-size: .75rem; } }
"""
LANDSCAPE = """@page { size: A4 landscape; margin: 12mm; }
@media screen { body { max-width: 84rem; padding-inline: clamp(1rem, 2vw, 3rem); } }
"""


def page(title: str, about: str, *blocks: str, landscape: bool = False) -> str:
    """A whole document; ``blocks`` are HTML already. ``landscape``: wide, also when it is printed."""
    name = html.escape(title)
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name}</title>\n<style>{STYLE}{LANDSCAPE if landscape else ''}</style>\n</head>\n<body>",
            f'<h1>{name}</h1>\n<p class="about">{html.escape(about)}</p>',
            *blocks,
            "</body>\n</html>\n",
        )
    )


def heading(text: str) -> str:
    """A section's title."""
    return f"<h2>{html.escape(text)}</h2>"


def note(text: str) -> str:
    """A remark in small print."""
    return f'<p class="note">{html.escape(text)}</p>'


def figures(pairs: Iterable[tuple[str, str]]) -> str:
    """The key figures in a row: each what it is, and what that means."""
    cells = (
        f"<li><strong>{html.escape(value)}</strong><span>{html.escape(label)}</span></li>" for value, label in pairs
    )
    return f'<ul class="figures">{"".join(cells)}</ul>'


def cards(*inner: str) -> str:
    """Charts side by side where there is room."""
    return f'<div class="cards">{"".join(inner)}</div>'


def chart(svg: str, title: str, caption: str, wide: bool = False) -> str:
    """A chart (an ``<svg>`` element) on white, so that its colours are the same by night."""
    kind = ' class="wide"' if wide else ""
    text = f"<strong>{html.escape(title)}</strong>{html.escape(caption)}"
    width = re.search(r'width="([\d.]+)pt"', svg)
    most = f' style="max-width:{TEXT_SCALE * float(width[1]):.0f}px"' if width else ""
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}"{most} ', 1)
    return f"<figure{kind}><figcaption>{text}</figcaption>{svg}</figure>"


def pictures(pairs: Sequence[tuple[str, bytes]]) -> str:
    """PNG pictures with titles, pixels enlarged a whole number of times. Raises DataError for other files."""
    room = 640 if len(pairs) == 1 else 320
    cells = []
    for title, data in pairs:
        if not data.startswith(PNG) or len(data) < 24:
            raise DataError(f"the picture {title!r} is not a PNG file")
        width = struct.unpack(">I", data[16:20])[0]
        width *= max(1, room // max(1, width))
        source = base64.b64encode(data).decode()
        name = html.escape(title)
        image = f'<img width="{width}" alt="{name}" src="data:image/png;base64,{source}">'
        cells.append(f"<figure><figcaption>{name}</figcaption>{image}</figure>")
    return f'<div class="pictures">{"".join(cells)}</div>'


def gallery(pairs: Iterable[tuple[str, bytes]], moving: str = "") -> str:
    """PNG pictures side by side, as wide as there is room. Raises DataError for other files.

    Animations have a title, ``moving``: they are not printed, and not shown where the system asks for less motion.
    """
    cells = []
    for title, data in pairs:
        if not data.startswith(PNG):
            raise DataError(f"the picture {title!r} is not a PNG file")
        name = html.escape(title)
        source = base64.b64encode(data).decode()
        image = f'<img alt="{name}" loading="lazy" src="data:image/png;base64,{source}">'
        cells.append(f"<figure><figcaption>{name}</figcaption>{image}</figure>")
    inner = f'<div class="gallery">{"".join(cells)}</div>'
    if not moving:
        return inner
    still = '<p class="note still">Animations are not shown, because this device asks for less motion.</p>'
    return f'<div class="motion">{heading(moving)}<div class="moving">{inner}</div>{still}</div>'


@dataclass(frozen=True)
class Row:
    """A line of ``grouped``: its cells, a colour before the first, and which of them stand out."""

    cells: Sequence[str]
    colour: str = ""
    strong: frozenset[int] = frozenset()


def grouped(head: Sequence[str], groups: Mapping[str, Sequence[Row]]) -> str:
    """A table of several parts, each under its title; the first column is names, the others numbers."""
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    lines = []
    for title, rows in groups.items():
        if title:
            lines.append(f'<tr class="group"><th scope="rowgroup" colspan="{len(head)}">{html.escape(title)}</th></tr>')
        for row in rows:
            cells = [
                f"<strong>{html.escape(c)}</strong>" if at in row.strong else html.escape(c)
                for at, c in enumerate(row.cells)
            ]
            if row.colour and cells:
                cells[0] = f'<span class="swatch" style="background:{html.escape(row.colour)}"></span>{cells[0]}'
            lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    inner = f"<thead><tr>{top}</tr></thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody>"
    return f'<div class="scroll"><table class="dense">\n{inner}</table></div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] = ()) -> str:
    """A table; its first column is names, the others numbers, and ``total`` its last row."""
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    lines = [f"<tr>{_cells(row)}</tr>" for row in rows]
    if total:
        lines.append(f'<tr class="sum">{_cells(total)}</tr>')
    body = "\n".join(lines)
    return f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def folded(title: str, text: str) -> str:
    """Text that is shown when asked for."""
    return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
