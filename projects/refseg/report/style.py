"""The report's style sheet. Colours are variables; dark mode swaps them, and the lines of the plots."""

from __future__ import annotations

from refseg.report.phrases import phrase_style
from refseg.report.plots import LINE_COLOURS_DARK

_BASE = """
:root { color-scheme: light dark; --page: #ffffff; --panel: #f4f5f7; --ink: #1b1d21; --soft: #565c66;
  --edge: #d5d9df; --link: #0b5c9e; --right: #00694d; --wrong: #a83a00; --rim: #6e6e6e; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main, header, nav { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 12px; }
h2 { font-size: 1.3rem; margin: 44px 0 12px; padding-top: 4px; }
h3 { font-size: 1.05rem; margin: 28px 0 10px; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; padding: 10px 0; margin: 12px 0 0;
  border-top: 1px solid var(--edge); border-bottom: 1px solid var(--edge); }
.soft { color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 10px 24px; margin: 0; }
.facts dt, .cards dt { color: var(--soft); font-size: .875rem; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 12px; margin: 0; }
.cards div { background: var(--panel); border: 1px solid var(--edge); border-radius: 10px; padding: 12px 16px; }
.cards dd { margin: 0; }
.cards .value { font-size: 1.9rem; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.cards .protocol { font-size: .8125rem; color: var(--soft); }
.tables { display: flex; flex-wrap: wrap; gap: 0 48px; }
.tables > div { min-width: 0; }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: min(320px, 100%); }
table caption { text-align: left; max-width: 90vw; color: var(--soft); font-size: .875rem; padding-bottom: 6px; }
th, td { padding: 6px 18px 6px 0; border-bottom: 1px solid var(--edge); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--soft); white-space: nowrap; }
th[scope=row] { font-weight: 500; min-width: 6.5em; }
.number { text-align: right; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 20px; }
.plot { width: 100%; max-width: 560px; height: auto; }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); gap: 16px; }
.case { border: 1px solid var(--edge); border-radius: 10px; padding: 12px; background: var(--panel); min-width: 0; }
.case .phrase { margin: 0 0 8px; font-weight: 600; overflow-wrap: anywhere; }
.case .objects { font-size: .875rem; }
.cases.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)); }
.case .pair { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 8px; }
.case figure { margin: 0; min-width: 0; }
.case img { display: block; width: 100%; height: auto; border-radius: 4px; }
.case figcaption { font-size: .8125rem; color: var(--soft); padding-top: 2px; }
.case p { margin: 8px 0 0; overflow-wrap: anywhere; }
.case .tags { font-size: .8125rem; color: var(--soft); }
.mark { font-weight: 650; white-space: nowrap; }
.mark.right { color: var(--right); }
.mark.wrong { color: var(--wrong); }
details { border: 1px solid var(--edge); border-radius: 10px; padding: 10px 16px; margin: 12px 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: .8125rem/1.45 ui-monospace, Consolas, Menlo, monospace; }
footer { height: 48px; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media (max-width: 480px) { main, header, nav { padding: 0 12px; } header { padding-top: 18px; }
  .cards { grid-template-columns: 1fr 1fr; } .cards .value { font-size: 1.5rem; } }
@media print { nav { display: none; } .case, .plot { break-inside: avoid; } }
"""

_DARK = """:root { --page: #15171a; --panel: #1e2125; --ink: #e9ebee; --soft: #a9b0ba; --edge: #383d45;
  --link: #79b8f0; --right: #4fd0a5; --wrong: #ff9d6b;
  --rim: #15171a; }"""


def style_sheet() -> str:
    lines = " ".join(
        f".line-{number} {{ stroke: {colour}; }} .line-{number} path {{ stroke: inherit; }}"
        for number, colour in enumerate(LINE_COLOURS_DARK)
    )
    return f"{_BASE}{phrase_style()}@media screen and (prefers-color-scheme: dark) {{ {_DARK}\n{lines} }}\n"
