#!/usr/bin/env python3
"""Draws what `host_step --csv` printed as SVG: microseconds a step by queue length, tree size and batch size.

  build/bin/host_step --csv | tools/plot_host_step.py > docs/images/host_step.svg
"""
import csv
import math
import sys

PANELS = [("by batch size", ["batch"]), ("by queue length", ["waiting, batch 256", "waiting, batch 1"]),
          ("by tree size (tokens)", ["tree tokens, batch 256"]),
          ("32 start and 32 end, by queue length", ["turnover, batch 256, waiting", "turnover, 259 tokens shared"])]
COLORS = ["#1f77b4", "#2ca02c"]
WIDTH, PANEL, LEFT, TOP, HEIGHT = 1160, 290, 52, 40, 200


def position(value):  # logarithmic, with a place for zero
    return 0 if value <= 0 else 1 + math.log10(value)


def main():
    rows = list(csv.reader(sys.stdin))[1:]
    # A case's name may hold a comma.
    points = [(",".join(row[:-6]), float(row[-6]), float(row[-5])) for row in rows]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {TOP + HEIGHT + 60}">',
           "<style>text{font:11px sans-serif;fill:#333}</style>",
           f'<rect width="{WIDTH}" height="{TOP + HEIGHT + 60}" fill="white"/>',
           f'<text x="{LEFT}" y="16" font-weight="bold">host time of a step with a null model, median microseconds</text>']
    for number, (title, cases) in enumerate(PANELS):
        left, right = PANEL * number + LEFT, PANEL * (number + 1) - 12
        mine = [point for point in points if point[0] in cases]
        most = max([60.0] + [us for _, _, us in mine])
        last = max(position(value) for _, value, _ in mine)
        x = lambda value: left + (right - left) * position(value) / last
        y = lambda us: TOP + HEIGHT * (1 - us / most)
        out.append(f'<text x="{left}" y="{TOP - 8}">{title}</text>')
        for us in (0, 25, 50) if most < 100 else (0, 100, 200):
            out.append(f'<line x1="{left}" x2="{right}" y1="{y(us):.1f}" y2="{y(us):.1f}" stroke="#ddd"/>'
                       f'<text x="{left - 6}" y="{y(us) + 4:.1f}" text-anchor="end">{us}</text>')
        for case, color in zip(cases, COLORS):
            line = [(value, us) for name, value, us in mine if name == case]
            path = " ".join(f"{x(value):.1f},{y(us):.1f}" for value, us in line)
            out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
            out += [f'<circle cx="{x(value):.1f}" cy="{y(us):.1f}" r="2.5" fill="{color}"/>'
                    f'<title>{case} {value:g}: {us} us</title>' for value, us in line]
        for value in sorted({value for _, value, _ in mine}):
            out.append(f'<text x="{x(value):.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{value:g}</text>')
        for i, (case, color) in enumerate(zip(cases, COLORS)):
            out.append(f'<text x="{left}" y="{TOP + HEIGHT + 34 + 14 * i}" style="fill:{color}">{case}</text>')
    sys.stdout.write("\n".join(out) + "\n</svg>\n")


if __name__ == "__main__":
    main()
