"""The report as one HTML page: plots, table, machine, and the commands that repeat it; and its
first plot as a picture of its own."""

from html import escape

from . import svg
from .tables import COLUMNS, cells

STYLE = """
:root { color-scheme: light dark; --text: #1c2733; --paper: #fff; --faint: #d5dbe1; --ours: #1769aa;
  --theirs: #b35c00; --met: #2e7d4f; --missed: #b3372f; }
@media (prefers-color-scheme: dark) { :root { --text: #dfe6ee; --paper: #14191f; --faint: #38424d;
  --ours: #6ab4f0; --theirs: #f0a050; --met: #5fc08a; --missed: #f07a70; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--paper);
  max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; margin: .6rem 0; }
svg text { fill: var(--text); font-size: 13px; } svg .small { font-size: 11.5px; }
.grid { stroke: var(--faint); } .axis { stroke: var(--text); } .goal { stroke: var(--text);
  stroke-width: 2.5; } .spread { stroke: var(--text); stroke-width: 1.2; }
rect.met { fill: var(--met); } rect.missed { fill: var(--missed); }
.curve { fill: none; stroke-width: 2; } .curve.ours { stroke: var(--ours); }
.curve.theirs { stroke: var(--theirs); } .dot.ours { fill: var(--ours); }
.dot.theirs { fill: var(--theirs); }
table { border-collapse: collapse; font-size: 13px; }
td, th { border-bottom: 1px solid var(--faint);
  padding: .3rem .5rem; text-align: left; vertical-align: top; }
td.missed { color: var(--missed); } code { font-size: 12px; overflow-wrap: anywhere; }
"""


def _table(results):
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    rows = []
    for result in results:
        kind = ' class="missed"' if not result.get("met") else ""
        columns = [escape(text.replace("**", "")) for text in cells(result)]
        rows.append("<tr>" + "".join(
            f"<td{kind if number == len(columns) - 2 else ''}>{text}</td>"
            for number, text in enumerate(columns)) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _repeat(results):
    """What to type for one run of each side, and what was seen to be right in the twin run."""
    parts = []
    for result in results:
        if "error" in result:
            continue
        lines = "".join(
            f"<li>{escape(result[side]['name'])}, verified: "
            f"{escape(str(result['verified'].get(side, '-')))}<br><code>"
            f"{escape(result[side]['command'])}</code></li>"
            for side in ("ours", "theirs") if result[side].get("command"))
        parts.append(f"<li>{escape(result['row'])} {escape(result['title'])}, "
                     f"{escape(result['figure'])}<ul>{lines}</ul></li>")
    return f"<details><summary>Each run's command</summary><ul>{''.join(parts)}</ul></details>"


def _machine(seen):
    processor = seen["machine"]["processor"]
    lines = [("processor", f"{processor['model']}, {processor['cores']} cores; "
              f"{' '.join(processor['flags'])}"),
             ("kernel", seen["machine"]["kernel"]),
             ("command", seen["command"]),
             ("took", f"{seen['seconds']} s, of which the hypervisor stole {seen['stolen_s']} s"),
             ("built with", ", ".join(f"{key}={value}" for key, value in seen["build"].items()))]
    lines += list(seen["versions"].items())
    return "<table>" + "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(text))}</td></tr>"
                               for name, text in lines) + "</table>"


def picture(seen):
    """The ratios as an SVG file for other documents."""
    plot = svg.bars(seen["rows"])
    if not plot:
        raise KeyError("ratio")
    # Rules for the whole page mean nothing in a picture: its text has no page to inherit from.
    style = STYLE.replace(":root", "svg") + "svg { background: var(--paper); } " \
        "svg text { font-family: system-ui, sans-serif; }"
    opening, rest = plot.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{rest}\n'


def page(seen):
    results = seen["rows"]
    drawn, curves = set(), []
    for result in results:
        latency = result.get("figure") in ("p50", "p99", "p99.9")
        if latency and (result["row"], result["title"]) not in drawn:
            drawn.add((result["row"], result["title"]))
            curves.append(svg.curves(result))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>millrace-bench</title><style>{STYLE}</style></head><body>"
        "<h1>millrace beside its peers and limits</h1>"
        "<p>Medians of rounds in which both sides took turns on the same two cores. A bar is the "
        "ratio of millraced's figure to the other's, from 1; the thick mark is the goal, the thin "
        "line the spread. Green: the goal is met.</p>"
        f"{svg.bars(results)}<h2>Latency</h2>{''.join(curves)}<h2>All figures</h2>"
        f"{_table(results)}<h2>Machine</h2>{_machine(seen)}{_repeat(results)}</body></html>\n")
