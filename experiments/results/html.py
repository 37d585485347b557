"""Pieces of a self-contained HTML page: charts as inline SVG, pictures as data URIs. Nothing is loaded from anywhere.

All text is escaped here. Colours are CSS variables, so that page and charts follow the reader's light or dark theme; lines
differ in marks and dashes, too, and what a bar stands for is said when the pointer is on it.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from common.errors import UserError

KINDS = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
"""Pictures that a page can hold."""
COLOURS = 6
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 340, 220, 44, 34, 26
"""Of a chart and its margins, in CSS pixels."""

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1d2126; --faint: #667; --rule: #d5d9df; --band: #f4f6f8;
  --c0: #0b66b2; --c1: #c2570c; --c2: #0a7f5f; --c3: #a23a86; --c4: #8a6d00; --c5: #5b6470; }
@media (prefers-color-scheme: dark) { :root {
  --page: #15181c; --ink: #e4e7eb; --faint: #9aa3ad; --rule: #363c44; --band: #1d2127;
  --c0: #62b0f0; --c1: #f39c5a; --c2: #4fc7a3; --c3: #e08bc6; --c4: #d9bd4e; --c5: #a9b2bd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; } .faint { color: var(--faint); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .22rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); }
th, td { vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child, .text th, .text td { text-align: left; }
.text td { white-space: normal; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--rule); } tbody tr:nth-child(odd) { background: var(--band); }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--faint); }
figure { margin: 0; } figcaption { color: var(--faint); font-size: .85rem; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 11px; }
svg .faint { fill: var(--faint); } svg .rule { stroke: var(--rule); } svg .ink { stroke: var(--ink); fill: none; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0; margin: .4rem 0; list-style: none; font-size: .88rem; }
.key svg { vertical-align: -2px; margin-right: .4rem; }
""" + "".join(f"svg .f{n} {{ fill: var(--c{n}); }} svg .s{n} {{ stroke: var(--c{n}); fill: none; }}\n" for n in range(COLOURS))


@dataclass(frozen=True)
class Bar:
    """One bar: a mean with its standard error and what it was before; None leaves a part out."""

    mean: float
    error: float | None = None
    before: float | None = None


def page(title: str, body: str) -> str:
    """A whole page; the policy in its head forbids whatever it does not bring along."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
            f"<style>{_STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n{_PATTERNS}</body></html>\n")


def folded(title: str, body: str) -> str:
    """Shown when it is clicked."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def picture(path: Path) -> str:
    """A picture file within the page. Raises UserError for a file that is not there, or of another kind."""
    if path.suffix.lower() not in KINDS:
        raise UserError(f"{path}: a page holds pictures that end in {', '.join(KINDS)}")
    if not path.is_file():
        raise UserError(f"{path}: no such picture")
    data = base64.b64encode(path.read_bytes()).decode()
    return (f'<figure><img src="data:{KINDS[path.suffix.lower()]};base64,{data}" alt="{escape(path.stem)}">'
            f"<figcaption>{escape(path.name)}</figcaption></figure>")


def key(labels: Sequence[str], lines: bool = False, numbers: Sequence[int] | None = None) -> str:
    """The legend of all charts whose series have these labels, in this order. numbers: those that are drawn, by default all."""
    def sample(number: int) -> str:
        mark = _line(number, [(1, 7), (12, 7), (23, 7)]) if lines else _block(number, 2, 1, 20, 12)
        return f'<svg width="24" height="14" aria-hidden="true">{mark}</svg>'

    return '<ul class="key">' + "".join(
        f"<li>{sample(n)}{escape(labels[n])}</li>" for n in (range(len(labels)) if numbers is None else numbers)) + "</ul>"


def bars(title: str, groups: Sequence[str], series: Sequence[tuple[str, Sequence[Bar | None]]]) -> str:
    """A bar for each group and series, on an axis from 0 to 100; a dashed tick across a bar is what was before."""
    width = max(WIDTH, LEFT + 12 + len(groups) * (14 * len(series) + 24))
    slot, parts = (width - LEFT - 12) / len(groups), []
    thick = 0.8 * slot / len(series)
    scale = _Scale(0, 100, HEIGHT - BOTTOM, TOP)
    for number, (label, values) in enumerate(series):
        for place, bar in enumerate(values):
            if bar is None:
                continue
            x, y = LEFT + place * slot + 0.1 * slot + number * thick, scale(bar.mean)
            description = f"{label}, {groups[place]}: {bar.mean:.1f}" + ("" if bar.error is None else f" ± {bar.error:.1f}")
            description += "" if bar.before is None else f" (before {bar.before:.1f})"
            marks = _block(number, x + 0.5, y, thick - 1, scale(0) - y)
            if bar.error:
                low, high, middle = scale(max(0, bar.mean - bar.error)), scale(min(100, bar.mean + bar.error)), x + thick / 2
                marks += f'<path class="ink" d="M{middle:.1f} {low:.1f}V{high:.1f}"/>'
            if bar.before is not None:
                marks += (f'<path class="ink" stroke-width="2" stroke-dasharray="3 2" '
                          f'd="M{x:.1f} {scale(bar.before):.1f}h{thick:.1f}"/>')
            parts.append(f"<g><title>{escape(description)}</title>{marks}</g>")
    names = "".join(f'<text x="{LEFT + (place + 0.5) * slot:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
                    f"{escape(group)}</text>" for place, group in enumerate(groups))
    return _chart(title, width, _grid(scale, width, [0, 25, 50, 75, 100]) + "".join(parts) + names)


def lines(title: str, x_name: str, series: Sequence[tuple[int, str, Sequence[float], Sequence[float]]]) -> str:
    """A line for each (place in the key, label, x, y); from 0 where no y is below."""
    xs = [x for _, _, many, _ in series for x in many]
    ys = [y for _, _, _, many in series for y in many if math.isfinite(y)]
    if not xs or not ys:
        return ""
    down = _Scale(min(0.0, *ys), max(*ys, 1e-12), HEIGHT - BOTTOM, TOP)
    across = _Scale(min(xs), max(xs), LEFT + 8, WIDTH - 16)
    parts = [_grid(down, WIDTH, _ticks(down.low, down.high))]
    for x in _ticks(across.low, across.high):
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_short(x)}</text>')
    parts.append(f'<text class="faint" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>')
    for number, label, x, y in series:
        points = [(across(a), down(b)) for a, b in zip(x, y) if math.isfinite(b)]
        parts.append(f"<g><title>{escape(label)}</title>{_line(number, points)}</g>")
    return _chart(title, WIDTH, "".join(parts))


@dataclass(frozen=True)
class _Scale:
    """From values low .. high to positions start .. end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def _chart(title: str, width: float, content: str) -> str:
    return (f'<svg width="{width:.0f}" height="{HEIGHT}" viewBox="0 0 {width:.0f} {HEIGHT}" role="img" '
            f'aria-label="{escape(title)}">'
            f'<text x="{LEFT}" y="14" font-weight="600">{escape(title)}</text>{content}</svg>')


def _grid(scale: _Scale, width: float, ticks: Sequence[float]) -> str:
    return "".join(f'<path class="rule" d="M{LEFT} {scale(tick):.1f}H{width - 12:.0f}"/><text class="faint" x="{LEFT - 6}" '
                   f'y="{scale(tick) + 4:.1f}" text-anchor="end">{_short(tick)}</text>' for tick in ticks)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round values within low .. high."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span))
    step = next(step * factor for factor in (0.2, 0.5, 1, 2) if span / (step * factor) <= 5.5)
    first = math.ceil(low / step - 1e-9)
    return [step * n for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _block(number: int, x: float, y: float, width: float, height: float) -> str:
    """A filled rectangle; from the second round of colours on it is hatched."""
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{max(height, 0.5):.1f}"'
    hatched = f'<rect {shape} fill="url(#hatch)"/>' if number // COLOURS % 2 else ""
    return f'<rect class="f{number % COLOURS}" {shape}/>{hatched}'


def _line(number: int, points: Sequence[tuple[float, float]]) -> str:
    """A line with a mark at each point; marks and dashes tell series apart without colour."""
    colour, path = number % COLOURS, " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ("", ' stroke-dasharray="6 3"', ' stroke-dasharray="2 2"')[number % 3]
    every = max(1, len(points) // 12)
    marks = "".join(f'<circle class="f{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' if number % 2 == 0 else
                    f'<rect class="f{colour}" x="{x - 2.4:.1f}" y="{y - 2.4:.1f}" width="4.8" height="4.8"/>'
                    for x, y in points[::every])
    return f'<polyline class="s{colour}" stroke-width="1.8" points="{path}"{dash}/>{marks}'


_PATTERNS = ('<svg width="0" height="0" aria-hidden="true"><defs><pattern id="hatch" width="5" height="5" '
             'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><path d="M0 0V5" style="stroke:var(--page)" '
             'stroke-width="3"/></pattern></defs></svg>\n')
