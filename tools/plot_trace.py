#!/usr/bin/env python3
"""Draws a trace (trace_path=...) as SVG: one bar a request (grey: queued, blue: prefill, green: decode), and below it
what ran, what waited and how much of the KV pool was held.

  plot_trace.py TRACE.json [--requests 40] [--title TEXT] > PICTURE.svg
"""
import argparse
import json
import sys
from xml.sax.saxutils import escape

COLORS = {"queued": "#c9c9c9", "prefill": "#1f77b4", "decode": "#2ca02c"}
WIDTH, LEFT, ROW = 900, 60, 9


def read_events(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # the process was killed: the list is open
        return json.loads(text[:text.rstrip().rfind("}") + 1] + "]")


def read_requests(events):
    """[[(stage, begin, end), ...], ...] in order of arrival, in microseconds."""
    opened, spans = {}, {}
    for event in events:
        if event.get("cat") != "request" or event["name"] not in COLORS:
            continue
        key = (event["id"], event["name"])
        if event["ph"] == "b":
            opened[key] = event["ts"]
        elif key in opened:
            spans.setdefault(event["id"], []).append((event["name"], opened.pop(key), event["ts"]))
    return [spans[key] for key in sorted(spans)]


def counter(events, name, field):
    return [(event["ts"], event["args"][field]) for event in events if event["ph"] == "C" and event["name"] == name]


def steps_line(points, x, top, height, most, color):
    y = lambda value: top + height * (1 - value / most)
    text, last = [], None
    for t, value in points:
        if last is not None:
            text.append(f"{x(t):.1f},{y(last):.1f}")
        text.append(f"{x(t):.1f},{y(value):.1f}")
        last = value
    return f'<polyline points="{" ".join(text)}" fill="none" stroke="{color}" stroke-width="1.3"/>'


def draw(events, limit, title):
    requests = read_requests(events)[:limit]
    if not requests:
        sys.exit("the trace holds no finished request")
    begin = min(span[1] for spans in requests for span in spans)
    end = max(span[2] for spans in requests for span in spans)
    x = lambda t: LEFT + (WIDTH - LEFT - 20) * (t - begin) / (end - begin)
    out, top = [], 44
    out.append(f'<text x="{LEFT}" y="16" font-weight="bold">{escape(title)}</text>')
    for i, (name, color) in enumerate(COLORS.items()):
        out.append(f'<rect x="{LEFT + 90 * i}" y="24" width="10" height="10" fill="{color}"/>'
                   f'<text x="{LEFT + 90 * i + 14}" y="33">{name}</text>')
    for spans in requests:
        for name, left, right in spans:
            out.append(f'<rect x="{x(left):.1f}" y="{top}" width="{max(0.6, x(right) - x(left)):.1f}" '
                       f'height="{ROW - 2}" fill="{COLORS[name]}"/>')
        top += ROW
    panels = [("running, queue", [("scheduler", "running", "#2ca02c"), ("scheduler", "queue", "#888")]),
              ("KV blocks: held, cached", [("KV blocks", "in use", "#d62728"), ("KV blocks", "cached", "#1f77b4")])]
    for name, lines in panels:
        top += 26
        out.append(f'<text x="{LEFT}" y="{top - 6}">{name}</text>')
        series = [([(t, v) for t, v in counter(events, group, field) if begin <= t <= end], color)
                  for group, field, color in lines]
        most = max([v for points, _ in series for _, v in points] + [1])
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{top + 70}" y2="{top + 70}" stroke="#bbb"/>'
                   f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{most:g}</text>'
                   f'<text x="{LEFT - 6}" y="{top + 72}" text-anchor="end">0</text>')
        out += [steps_line(points, x, top, 70, most, color) for points, color in series]
        top += 70
    for tick in range(6):
        t = begin + (end - begin) * tick / 5
        out.append(f'<text x="{x(t):.1f}" y="{top + 18}" text-anchor="middle">{(t - begin) / 1e3:.0f} ms</text>')
    height = top + 28
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">\n'
            "<style>text{font:11px sans-serif;fill:#333}</style>\n"
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n' + "\n".join(out) + "\n</svg>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--requests", type=int, default=40, help="how many requests to draw, in order of arrival")
    parser.add_argument("--title", default="requests over time")
    options = parser.parse_args()
    sys.stdout.write(draw(read_events(options.trace), options.requests, options.title))


if __name__ == "__main__":
    main()
