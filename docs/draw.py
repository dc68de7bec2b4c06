"""Draw the pictures of concept.md as SVG, in colours for light and dark screens.

    python docs/draw.py            write docs/img/*.svg

The first picture shows what `worked_example` computes; nothing in it is drawn by hand.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

from worked_example import NUM_SINKS, NUM_SLOTS, WORDS, State, decode_steps

IMAGES = Path(__file__).parent / "img"

_STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de; }
  text { font-family: ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif;
         font-size: 14px; fill: #1f2328; }
  .small { font-size: 12px; }
  .faint { fill: #59636e; }
  .strong { font-weight: 600; }
  .mid { text-anchor: middle; }
  .end { text-anchor: end; }
  .slot { fill: #f6f8fa; stroke: #afb8c1; }
  .sink { fill: #ddf4ff; stroke: #54aeff; }
  .recent { fill: #dafbe1; stroke: #4ac26b; }
  .bar { fill: #8c959f; }
  .written { fill: none; stroke: #bc4c00; stroke-width: 3; }
  .next { fill: none; stroke: #cf222e; stroke-width: 2; stroke-dasharray: 5 4; }
  .hot { fill: #bc4c00; }
  .line { fill: none; stroke: #59636e; stroke-width: 1.8; }
  .head { fill: #59636e; }
  .box { fill: #f6f8fa; stroke: #afb8c1; }
  .unit { fill: none; stroke: #54aeff; stroke-width: 2; }
  .badge { fill: #0969da; }
  .badge-text { fill: #ffffff; font-size: 12px; font-weight: 600; text-anchor: middle; }
"""
_DARK = """
    .card { fill: #0d1117; stroke: #3d444d; }
    text { fill: #f0f6fc; }
    .faint { fill: #9198a1; }
    .slot { fill: #151b23; stroke: #656c76; }
    .sink { fill: #0c2d52; stroke: #388bfd; }
    .recent { fill: #12361f; stroke: #3fb950; }
    .bar { fill: #8b949e; }
    .written { stroke: #f0883e; }
    .next { stroke: #ff7b72; }
    .hot { fill: #f0883e; }
    .line { stroke: #9198a1; }
    .head { fill: #9198a1; }
    .box { fill: #151b23; stroke: #656c76; }
    .unit { stroke: #388bfd; }
    .badge { fill: #1f6feb; }
    .badge-text { fill: #ffffff; }
"""


class _Sheet:
    """Collect the shapes of one picture."""

    def __init__(self, width: int, height: int, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self.parts: list[str] = []

    def rect(self, kind: str, x: float, y: float, w: float, h: float, *, round_: int = 6) -> None:
        self.parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{round_}"/>'
        )

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        named = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text{named} x="{x:g}" y="{y:g}">{escape(words)}</text>')

    def arrow(self, *points: tuple[float, float]) -> None:
        path = " L ".join(f"{x:g} {y:g}" for x, y in points)
        self.parts.append(f'<path class="line" d="M {path}" marker-end="url(#tip)"/>')

    def badge(self, x: float, y: float, number: int) -> None:
        self.parts.append(f'<circle class="badge" cx="{x:g}" cy="{y:g}" r="11"/>')
        self.text(x, y + 4.5, str(number), "badge-text")

    def svg(self, *, theme: str = "auto") -> str:
        """Return the picture; theme "auto" follows the screen, "dark" is for looking at it."""
        dark = f"  @media (prefers-color-scheme: dark) {{{_DARK}  }}\n" if theme == "auto" else ""
        style = _STYLE + (_DARK if theme == "dark" else dark)
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" '
                f'height="{self.height}" viewBox="0 0 {self.width} {self.height}" role="img" '
                f'aria-label="{escape(self.label)}">',
                f"<style>{style}</style>",
                '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
                'markerHeight="7" orient="auto"><path class="head" d="M 0 0 L 10 5 L 0 10 z"/>'
                "</marker></defs>",
                f'<rect class="card" x="0.5" y="0.5" width="{self.width - 1}" '
                f'height="{self.height - 1}" rx="10"/>',
                *self.parts,
                "</svg>",
                "",
            ]
        )


def steps() -> _Sheet:
    """Draw the worked example: six slots, one row per token."""
    left, top, cell, high, gap = 168, 62, 88, 58, 18
    states = decode_steps()[NUM_SLOTS - 1 :]
    bottom = top + len(states) * (high + gap)
    sheet = _Sheet(960, bottom + 52, "Six slots over five tokens: each new token replaces one")
    sheet.text(20, 34, "new token", "strong")
    for slot in range(NUM_SLOTS):
        sheet.text(left + slot * cell + (cell - 8) / 2, 34, f"slot {slot}", "strong mid")
    sheet.text(left + NUM_SLOTS * cell + 14, 34, "what the KV-MMU did", "strong")
    longest = max(state.scores[s] for state in states for s in range(NUM_SLOTS) if s >= NUM_SINKS)
    for row, state in enumerate(states):
        y = top + row * (high + gap)
        before = None if row == 0 else states[row - 1]
        sheet.text(20, y + 26, WORDS[state.token], "strong")
        sheet.text(20, y + 45, f"position {state.token}", "small faint")
        for slot in range(NUM_SLOTS):
            _slot(sheet, state, slot, (left + slot * cell, y, cell - 8, high), longest)
        x = left + NUM_SLOTS * cell + 14
        if before is None:
            sheet.text(x, y + 26, "the last empty slot is filled")
            sheet.text(x, y + 45, "from here on the cache is full", "small faint")
            continue
        score = before.scores[state.written]
        sheet.text(x, y + 26, f"“{WORDS[state.left]}” ({score:.2f}) leaves slot {state.written}")
        sheet.text(x, y + 45, f"“{WORDS[state.token]}” takes it, then attends", "small faint")
    _legend(sheet, bottom + 8)
    return sheet


def _slot(
    sheet: _Sheet,
    state: State,
    slot: int,
    at: tuple[float, float, float, float],
    longest: float,
) -> None:
    """Draw one slot: its token, its score as a number and a bar, and what becomes of it."""
    x, y, w, h = at
    kind = "sink" if state.is_sink(slot) else "recent" if state.is_recent(slot) else "slot"
    sheet.rect(kind, x, y, w, h)
    position, score = state.positions[slot], state.scores[slot]
    sheet.text(x + 8, y + 21, WORDS[position], "strong")
    sheet.text(x + w - 8, y + 21, str(position), "small faint end")
    sheet.rect(
        "bar", x + 8, y + h - 14, (w - 16) * max(0.02, min(1.0, score / longest)), 5, round_=2
    )
    sheet.text(x + 8, y + 38, f"{score:.2f}", "small")
    if state.written == slot:
        sheet.rect("written", x - 2, y - 2, w + 4, h + 4, round_=8)
    if state.next_victim == slot and state.token < len(WORDS) - 1:
        sheet.rect("next", x + 3, y + 3, w - 6, h - 6, round_=4)


def _legend(sheet: _Sheet, y: float) -> None:
    """Explain the colours."""
    entries = (
        ("sink", "sink: never leaves"),
        ("recent", "window: the last two"),
        ("slot", "may leave"),
        ("written", "just written"),
        ("next", "leaves next: least score"),
    )
    x = 20.0
    for kind, words in entries:
        sheet.rect(kind, x, y, 22, 16, round_=4)
        sheet.text(x + 30, y + 13, words, "small")
        x += 66 + 6.6 * len(words)


def loop() -> _Sheet:
    """Draw the KV-MMU's parts and the order in which a new token passes them."""
    sheet = _Sheet(960, 444, "The parts of a KV-MMU and the way of one new token")
    sheet.rect("unit", 196, 24, 560, 300, round_=12)
    sheet.text(212, 50, "KV-MMU of one layer", "strong")
    _box(sheet, (20, 140, 140, 70), "model layer", "q, k, v of one token")
    _box(sheet, (226, 74, 210, 84), "slot table", "position, score, state", "of C slots")
    _box(sheet, (516, 74, 210, 84), "rank", "policy's priority,", "then sinks and window")
    _box(sheet, (226, 214, 210, 84), "storage", "K and V of C slots,", "overwritten in place")
    _box(sheet, (516, 214, 210, 84), "attend", "over exactly C slots", "")
    _box(sheet, (800, 214, 140, 84), "output", "to the model", "")
    _box(sheet, (226, 372, 210, 52), "trace", "slot, position, who left")
    _box(sheet, (516, 372, 210, 52), "hardware models", "replay the trace")
    sheet.arrow((436, 100), (514, 100))
    sheet.badge(475, 84, 1)
    sheet.arrow((560, 158), (560, 186), (331, 186), (331, 212))
    sheet.text(462, 179, "victim's slot", "small faint mid")
    sheet.badge(388, 186, 2)
    sheet.arrow((120, 210), (120, 256), (224, 256))
    sheet.text(157, 246, "k, v", "small faint mid")
    sheet.arrow((436, 256), (514, 256))
    sheet.badge(475, 240, 3)
    sheet.arrow((726, 256), (798, 256))
    sheet.arrow((660, 214), (660, 186), (745, 186), (745, 64), (331, 64), (331, 72))
    sheet.text(668, 206, "mass per slot", "small faint")
    sheet.badge(545, 64, 4)
    sheet.arrow((60, 210), (60, 312), (621, 312), (621, 300))
    sheet.text(75, 302, "q", "small faint mid")
    sheet.arrow((331, 324), (331, 370))
    sheet.badge(355, 346, 5)
    sheet.arrow((436, 398), (514, 398))
    return sheet


def _box(sheet: _Sheet, at: tuple[float, float, float, float], title: str, *lines: str) -> None:
    """Draw a named part with up to two lines of what it holds."""
    x, y, w, h = at
    sheet.rect("box", x, y, w, h)
    sheet.text(x + w / 2, y + 24, title, "strong mid")
    for n, line in enumerate(lines):
        sheet.text(x + w / 2, y + 44 + 18 * n, line, "small mid")


def pictures(*, theme: str = "auto") -> dict[str, str]:
    """Return every picture by file name."""
    sheets = {"steps.svg": steps(), "kv-mmu.svg": loop()}
    return {name: sheet.svg(theme=theme) for name, sheet in sheets.items()}


def main() -> None:
    """Write the pictures."""
    IMAGES.mkdir(exist_ok=True)
    for name, svg in pictures().items():
        (IMAGES / name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
