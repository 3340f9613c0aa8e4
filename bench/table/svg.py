"""Plots as SVG text. Colours are the page's: classes, so that they follow light and dark."""

import math
from html import escape

from .lines import PERCENTILES

WIDTH, LEFT, ROW = 860, 360, 26
DECADES = (1 / 64, 16)  # what the bars' scale shows of ratios


def _text(x, y, text, kind="", anchor="start"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">'
            f"{escape(text)}</text>")


def _line(x1, y1, x2, y2, kind):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _svg(height, label, parts):
    return (f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
            + "".join(parts) + "</svg>")


def _short(text, most=56):
    return text if len(text) <= most else text[:most - 1] + "\u2026"


def bars(results):
    """Every ratio as a bar from 1, its spread, and its goal as a mark. Logarithmic."""
    shown = [result for result in results if result.get("kind") in ("most", "least")]
    if not shown:
        return ""
    low, high = map(math.log, DECADES)

    def at(ratio):
        place = (math.log(min(max(ratio, DECADES[0]), DECADES[1])) - low) / (high - low)
        return LEFT + place * (WIDTH - LEFT - 20)

    bottom = 30 + ROW * len(shown)
    parts = []
    for mark in (1 / 64, 1 / 16, 1 / 4, 1, 4, 16):
        parts.append(_line(at(mark), 22, at(mark), bottom, "axis" if mark == 1 else "grid"))
        parts.append(_text(at(mark), 14, f"{mark:g}" if mark >= 1 else f"1/{1 / mark:g}", "small",
                           "middle"))
    for number, result in enumerate(shown):
        y = 30 + ROW * number
        seen, figure = result["compared"], result["figure"]
        kind = "met" if result["met"] else "missed"
        x, one = at(seen["median"]), at(1)
        parts += [
            "<g>", f"<title>{escape(result['title'])}: {seen['median']:.3g}, goal "
            f"{result['goal']:.3g}</title>",
            _text(0, y + 14, f"{result['row']} {_short(result['title'], 46)}, {figure}", "small"),
            f'<rect x="{min(x, one):.1f}" y="{y + 3}" width="{max(abs(x - one), 1):.1f}" '
            f'height="14" class="{kind}"/>',
            _line(at(seen["least"]), y + 10, at(seen["most"]), y + 10, "spread"),
            _line(at(result["goal"]), y, at(result["goal"]), y + 20, "goal"), "</g>"]
    return _svg(bottom + 4, "ratios against their goals", parts)


def _curve(side, kind, x_of, y_of):
    points = [(x_of(number), y_of(side[name])) for number, name in enumerate(PERCENTILES)
              if side.get(name)]
    path = " ".join(f"{'L' if number else 'M'}{x:.1f} {y:.1f}"
                    for number, (x, y) in enumerate(points))
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="dot {kind}"/>'
                   for x, y in points)
    return f'<path d="{path}" class="curve {kind}"/>{dots}'


def curves(result):
    """The latency of both sides by percentile; microseconds, logarithmic."""
    sides = (result["ours"], result["theirs"])
    values = [side[name] for side in sides for name in PERCENTILES if side.get(name)]
    if not values:
        return ""
    top, bottom, left = 44, 230, 60
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)

    def x_of(number):
        return left + number * (WIDTH - left - 40) / (len(PERCENTILES) - 1)

    def y_of(value):
        return bottom - (math.log10(value) - low) / (high - low) * (bottom - top)

    parts = [_text(left, 16, f"{result['row']} {_short(result['title'], 90)}", "")]
    for decade in range(low, high + 1):
        y = y_of(10 ** decade)
        parts += [_line(left, y, WIDTH - 40, y, "grid"),
                  _text(left - 6, y + 4, f"{10.0 ** decade:g} us", "small", "end")]
    for number, name in enumerate(PERCENTILES):
        parts.append(_text(x_of(number), bottom + 18, name, "small", "middle"))
    for side, kind, x in ((sides[0], "ours", left), (sides[1], "theirs", left + 200)):
        parts += [f'<circle cx="{x + 5}" cy="30" r="4" class="dot {kind}"/>',
                  _text(x + 16, 34, side["name"], "small"), _curve(side, kind, x_of, y_of)]
    return _svg(bottom + 28, f"latency: {result['title']}", parts)
