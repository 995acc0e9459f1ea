"""Look and behaviour of report.html: everything inline, nothing fetched."""

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b1f26;--dim:#667080;--line:#e3e6eb;--soft:#f1f3f6;
--good:#157f53;--bad:#b3261e;--warn:#8a5a00;--warnbg:#fff4d9;
--c0:#2f6fde;--c1:#d9730d;--c2:#12916a;--c3:#b03a8c;--c4:#7457e8;--c5:#8a6d3b;--c6:#7b8594}
@media(prefers-color-scheme:dark){:root{--bg:#12151a;--card:#1b2028;--ink:#e6e9ee;--dim:#97a1b0;--line:#2d343f;--soft:#232a34;
--good:#5fce9b;--bad:#ff8f85;--warn:#f0c766;--warnbg:#33290f;
--c0:#6ea4ff;--c1:#f2a154;--c2:#4cc79b;--c3:#ea86c8;--c4:#a795ff;--c5:#cdb07a;--c6:#9aa5b4}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1240px;margin:0 auto;padding:28px 16px 48px}
h1{font-size:26px;margin:0;overflow-wrap:anywhere}h2{font-size:18px;margin:34px 0 12px}h3{font-size:14px;margin:0}
p{margin:6px 0}.dim{color:var(--dim)}.card{background:var(--card);border:1px solid var(--line);border-radius:10px}
dl{display:flex;flex-wrap:wrap;gap:6px 28px;margin:12px 0 0}
dt{color:var(--dim);font-size:12px}dd{margin:0;overflow-wrap:anywhere}
.charts,.pair{display:grid;gap:14px;margin:0}.tiles{display:flex;flex-wrap:wrap;gap:14px;margin-top:20px}
.charts{grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr))}
.tile{flex:1 1 140px;padding:12px 16px;max-width:330px}
.tile b{display:block;font-size:21px;font-variant-numeric:tabular-nums;white-space:nowrap}
.tile s{text-decoration:none;font-weight:400;font-size:.75em;color:var(--dim)}
.tile span{color:var(--dim);font-size:13px}
.warn{background:var(--warnbg);color:var(--warn);border-radius:10px;padding:10px 16px 10px 34px;margin:18px 0 0}
figure{margin:0;padding:12px 12px 8px;position:relative}
figcaption{display:flex;flex-wrap:wrap;gap:2px 14px;align-items:baseline;min-height:24px}
figcaption ul{display:flex;flex-wrap:wrap;gap:0 12px;list-style:none;margin:0;padding:0;font-size:12px;color:var(--dim)}
figcaption i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
svg{display:block;overflow:visible;width:100%;touch-action:pan-y}
svg[viewBox]{height:auto}svg text{font-size:11px;fill:var(--dim);text-anchor:end;font-variant-numeric:tabular-nums}
svg text.x{text-anchor:middle}svg text.unit{text-anchor:start}
.grid{stroke:var(--line)}.axis{stroke:var(--dim)}.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.line[stroke-dasharray]{stroke-linecap:butt}
.band{opacity:.18}.cursor{stroke:var(--dim);stroke-dasharray:3 3;visibility:hidden}
output{position:absolute;top:40px;pointer-events:none;background:var(--ink);color:var(--bg);border-radius:6px;
padding:5px 9px;font-size:12px;line-height:1.45;white-space:pre;
display:none;font-variant-numeric:tabular-nums;z-index:1}
.gantt{margin-bottom:14px}.gantt>div{display:grid;grid-template-columns:auto minmax(0,1fr);gap:0 10px}
.gantt ol{list-style:none;margin:0;padding:22px 0 0;font-size:12px;line-height:24px;color:var(--dim);white-space:nowrap}
.idle{fill:var(--soft)}.cut{stroke:var(--dim);stroke-dasharray:3 3}svg text.step{text-anchor:start}
.move{fill:var(--ink);stroke:var(--ink)}.move circle{stroke:var(--card);stroke-width:2}
table{border-collapse:collapse;width:100%;margin-top:8px;font-size:13px;font-variant-numeric:tabular-nums}
th,td{font-weight:400;text-align:left;padding:3px 10px 3px 0;white-space:nowrap}th{color:var(--dim)}
td{vertical-align:top}.chosen td{font-weight:600}.modes{margin:14px 0 10px}
.modes th,.modes td:last-child{white-space:normal}
td.why{white-space:normal;overflow-wrap:anywhere}figure:has(table){overflow-x:auto}
td i{display:block;height:4px;border-radius:2px;background:var(--c2)}
.pair{grid-template-columns:repeat(2,minmax(0,1fr));gap:0 22px;padding:14px 16px;margin-bottom:14px}
.wide{max-height:290px;overflow-y:auto}
@media(min-width:780px){.wide{grid-column:2/-1}}
@media(min-width:500px)and (max-width:725px){svg[viewBox] text{font-size:8px}}
@media(max-width:640px){.tile{padding:9px 12px}.tile b{font-size:17px}
.pair{grid-template-columns:minmax(0,1fr);gap:14px}}
pre{margin:6px 0 0;padding:9px 11px;background:var(--soft);border-radius:7px;white-space:pre-wrap;
overflow-wrap:anywhere;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
max-height:420px;overflow-y:auto}
pre+.meta{margin-bottom:8px}.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}
.meta{font-size:13px;color:var(--dim)}summary{cursor:pointer;padding:12px 16px}details pre{margin:0 16px 16px}
"""

SCRIPT = """
for (const svg of document.querySelectorAll('svg[data-hover]')) {
  const data = JSON.parse(svg.dataset.hover), out = svg.nextElementSibling, cursor = svg.querySelector('.cursor');
  const show = event => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    let i = 0;
    data.px.forEach((px, k) => { if (Math.abs(px - at) < Math.abs(data.px[i] - at)) i = k; });
    cursor.setAttribute('x1', data.px[i]); cursor.setAttribute('x2', data.px[i]); cursor.style.visibility = 'visible';
    const lines = Object.entries(data.values).filter(([, v]) => v[i] !== '').map(([name, v]) => name + '  ' + v[i]);
    out.textContent = [data.along + ' ' + data.x[i], ...lines].join('\\n');
    out.style.display = 'block';
    const left = 12 + data.px[i] * box.width / svg.viewBox.baseVal.width;
    out.style.left = (left + out.offsetWidth + 12 > box.width ? left - out.offsetWidth - 10 : left + 10) + 'px';
  };
  svg.addEventListener('pointermove', show);
  svg.addEventListener('pointerdown', show);
  svg.addEventListener('pointerleave', () => { out.style.display = 'none'; cursor.style.visibility = 'hidden'; });
}
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><main>{body}</main><script>{script}</script></body></html>
"""
