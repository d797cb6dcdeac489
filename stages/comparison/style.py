"""The look of the report, and the few lines that sort its tables."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1b212c; --muted: #59626f; --rule: #dfe3e9; --faint: #eceff3;
  --wash: #f5f7f9; --paper: #fff; --up: #00694d; --down: #a53a00; --heat: 0, 114, 178;
  --s0: #7b8593; --s1: #0072b2; --s2: #d55e00; --s3: #00805c; --s4: #a6568a; }
@media screen and (prefers-color-scheme: dark) { :root {
  --ink: #e6e9ee; --muted: #9ba5b3; --rule: #323944; --faint: #262c35;
  --wash: #1d222a; --paper: #14181e; --up: #4fd0a7; --down: #ff9a5c; --heat: 86, 180, 233;
  --s0: #97a1af; --s1: #56b4e9; --s2: #e69f00; --s3: #2cc295; --s4: #dd94bd; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: var(--paper); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
main { max-width: 1180px; margin: 0 auto; padding: 48px 32px 96px; }
h1 { font-size: 1rem; font-weight: 600; color: var(--muted); margin: 0; }
h2 { font-size: 1.3rem; line-height: 1.3; font-weight: 650; letter-spacing: -0.01em; margin: 0 0 4px; }
h3 { font-size: 0.9rem; font-weight: 600; margin: 20px 0 6px; }
p { margin: 6px 0 14px; max-width: 72ch; }
section { margin-top: 56px; }
.answer { font-size: 1.5rem; line-height: 1.4; letter-spacing: -0.01em; margin: 10px 0 16px; max-width: 46em;
  text-wrap: pretty; }
.answer b { font-weight: 650; display: inline-block; max-width: 100%; } .answer .verdict { font-weight: 750; }
.facts, .hint { color: var(--muted); font-size: 0.9rem; }
nav { margin-top: 22px; display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 0.9rem;
  border-block: 1px solid var(--rule); padding: 8px 0; }
a { color: var(--s1); text-decoration: none; } a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--s1); outline-offset: 2px; }
figure { margin: 18px 0; } figcaption { color: var(--muted); font-size: 0.9rem; margin-bottom: 10px; max-width: 80ch; }
svg { display: block; width: 100%; overflow: visible; }
svg path, svg polyline { vector-effect: non-scaling-stroke; fill: none; stroke-width: 1px; }
.grid { stroke: var(--faint); } .bound { stroke: var(--rule); } .guide { stroke: var(--s0); stroke-dasharray: 4 3; }
.s0 { --s: var(--s0); } .s1 { --s: var(--s1); } .s2 { --s: var(--s2); } .s3 { --s: var(--s3); } .s4 { --s: var(--s4); }
.interval, .mean, .seed, .line, .point { stroke: var(--s); stroke-linecap: round; }
svg .interval { stroke-width: 2px; stroke-opacity: 0.55; stroke-linecap: butt; }
svg .mean { stroke-width: 3px; stroke-linecap: butt; }
svg .seed { stroke-width: 8px; stroke-opacity: 0.6; } svg .line { stroke-width: 1.6px; stroke-linejoin: round; }
svg .point { stroke-width: 5px; }
.name { font-weight: 500; }
.row { display: grid; grid-template-columns: minmax(9em, 15em) minmax(0, 1fr) 10em; gap: 0 20px; align-items: center; }
.row .strip { position: relative; } .row svg { height: 30px; }
.row .name { font-size: 0.9rem; line-height: 1.25; } .row.base .name { color: var(--muted); }
.row.base .name::after { content: " baseline"; font-weight: 400; font-size: 0.8rem; }
.row .value { font-size: 0.9rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
small { color: var(--muted); font-size: 0.85em; margin-left: 2px; font-weight: 400; }
.cut { position: absolute; top: 0; line-height: 29px; color: var(--s1); font-weight: 700; }
.base .cut { color: var(--s0); } .cut.left { left: -9px; } .cut.right { right: -9px; }
.ticks { position: relative; height: 1.6em; font-size: 0.8rem; color: var(--muted); }
.ticks span {
  position: absolute; transform: translateX(-50%); white-space: nowrap; font-variant-numeric: tabular-nums;
}
.axis .name { font-weight: 400; color: var(--muted); font-size: 0.8rem; }
.up { color: var(--up); } .down { color: var(--down); } .even, .absent { color: var(--muted); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 8px 0 12px;
  font-size: 0.9rem; }
.chip { display: inline-block; width: 12px; height: 12px; border-radius: 3px; background: var(--s); margin-right: 6px;
  vertical-align: -1px; }
.chip.colour { box-shadow: 0 0 0 1px var(--rule); }
.bars { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 14px 40px; }
.group { display: grid; grid-template-columns: 6.5em minmax(0, 1fr); gap: 12px; align-items: center; font-size: 0.85rem;
  break-inside: avoid; line-height: 1.25; }
.bar { display: flex; align-items: center; gap: 8px; height: 16px; padding-right: 3.2em; }
.bar i { height: 10px; background: var(--s); border-radius: 0 2px 2px 0; min-width: 1px; flex: none; }
.bar span { font-size: 0.75rem; color: var(--muted); font-variant-numeric: tabular-nums; white-space: nowrap; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 22px 32px; }
.curve { display: grid; grid-template-columns: 3.2em minmax(0, 1fr); min-width: 0; break-inside: avoid; }
.curve h3 { grid-column: 2; margin: 0 0 6px; line-height: 1.3; }
.curve svg { height: 118px; border-bottom: 1px solid var(--rule); }
.curve .y { position: relative; font-size: 0.75rem; color: var(--muted); }
.curve .y span { position: absolute; right: 8px; transform: translateY(-50%); }
.phases { grid-column: 2; display: flex; font-size: 0.75rem; color: var(--muted); text-align: center; }
.phases span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; padding: 2px 2px 0; min-width: 0;
  border-left: 1px solid var(--rule); } .phases span:first-child { border: 0; }
.curve .end { grid-column: 2; text-align: right; font-size: 0.75rem; color: var(--muted); }
.curve .ticks { grid-column: 2; margin-top: 4px; } .curve.tall { max-width: 760px; } .curve.tall svg { height: 280px; }
.scroll { overflow-x: auto; margin: 14px 0; background:
  linear-gradient(90deg, var(--paper) 30%, transparent) left / 48px 100% no-repeat local,
  linear-gradient(270deg, var(--paper) 30%, transparent) right / 48px 100% no-repeat local,
  radial-gradient(farthest-side at 0 50%, rgba(110, 120, 135, 0.45), transparent) left / 14px 100% no-repeat scroll,
  radial-gradient(farthest-side at 100% 50%, rgba(110, 120, 135, 0.45), transparent) right / 14px 100% no-repeat
  scroll; }
table { overflow-wrap: normal; border-collapse: collapse; width: 100%; font-size: 0.85rem;
  font-variant-numeric: tabular-nums; }
th { font-weight: 550; color: var(--muted); text-align: right; vertical-align: bottom; padding: 4px 10px;
  line-height: 1.3; border-bottom: 1px solid var(--s0); }
td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); z-index: 1; }
td.text, th.text { text-align: left; }
th.headline { color: var(--ink); } td.headline { font-weight: 650; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; }
th button:hover { color: var(--ink); text-decoration: underline; }
th[aria-sort=ascending] button::after { content: " ▲"; font-size: 0.7em; }
th[aria-sort=descending] button::after { content: " ▼"; font-size: 0.7em; }
tr.baseline td:first-child::after { content: "baseline"; color: var(--muted); font-size: 0.8em; margin-left: 8px; }
.heat td { text-align: center; border: 2px solid var(--paper); padding: 5px 8px; min-width: 3.4em; }
.heat th { text-align: center; border: 0; } .heat th:first-child, .heat td:first-child { text-align: left; }
.notes { font-size: 0.9rem; color: var(--muted); padding-left: 20px; margin: 14px 0 0; max-width: 96ch; }
.notes li { margin: 4px 0; }
details { margin: 16px 0; } summary { cursor: pointer; font-weight: 550; font-size: 0.95rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(138px, 1fr)); gap: 12px; }
.tiles.pairs { grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); }
.tiles figure { margin: 0; } .tiles img { width: 100%; height: auto; display: block; border-radius: 3px; }
.tiles img.labels { image-rendering: pixelated; }
.tiles figcaption { font-size: 0.8rem; line-height: 1.3; margin: 4px 0 0; }
.budget { margin: 14px 0; } .budget .row { min-height: 28px; }
.steps { display: flex; height: 20px; }
.steps span { background: var(--faint); border-left: 3px solid var(--s3); margin-right: 2px; font-size: 0.75rem;
  line-height: 20px; overflow: hidden; text-overflow: ellipsis; padding-left: 6px; white-space: nowrap; }
.steps .seg { border-color: var(--s1); } .steps .depth { border-color: var(--s2); }
pre { background: var(--wash); border-radius: 6px; padding: 14px 16px; font: 0.8rem/1.6 ui-monospace, SFMono-Regular,
  Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 12px 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; font-size: 0.9rem; margin: 12px 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  main { padding: 24px 16px 64px; } section { margin-top: 44px; } .answer { font-size: 1.2rem; }
  .row { grid-template-columns: minmax(0, 1fr) max-content; gap: 0 12px; margin-bottom: 10px; }
  .row .strip, .row .ticks, .row .steps { grid-column: 1 / -1; order: 3; } .row .strip, .row .ticks { margin: 0 9px; }
  th:first-child, td:first-child { max-width: 42vw; white-space: normal; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .tiles.pairs { grid-template-columns: 1fr; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; } .bars { grid-template-columns: 1fr; }
}
@media print {
  :root { color-scheme: light; font-size: 10.5px; } main { padding: 0; max-width: none; } nav { display: none; }
  h2, h3 { break-after: avoid; } figure, tr, .row { break-inside: avoid; } .scroll { overflow: visible; }
  section { margin-top: 28px; } details::details-content { content-visibility: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

SCRIPT = """
for (const head of document.querySelectorAll("table.sortable th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const table = head.closest("table"), up = head.getAttribute("aria-sort") === "descending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[head.cellIndex].dataset.sort ?? row.cells[head.cellIndex].textContent;
    const compare = (a, b) => a === "" ? 1 : b === "" ? -1 :
      (up ? 1 : -1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => compare(key(a), key(b))));
  });
}
"""
"""Without it the tables are as they were written."""
