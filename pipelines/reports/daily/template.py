"""The daily page's template: HTML and drawings in one, escaped by Jinja; light, for a phone's width and for paper."""

STYLE = """
 :root { color-scheme: light; --ink: #1f2328; --soft: #5b6470; --line: #e2e6ec; --good: #1a7f46; --watch: #9a6200; --bad: #b3261e; --blue: #1a5fb4; }
 * { box-sizing: border-box; }
 body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; color: var(--ink); background: #f5f7fa; margin: 0; }
 main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 56px; }
 h1 { font-size: 25px; line-height: 1.25; margin: 6px 0 4px; } h2 { font-size: 17px; margin: 32px 0 4px; }
 p { margin: 4px 0 10px; max-width: 880px; } .soft { color: var(--soft); font-size: 13.5px; } a { color: var(--blue); }
 .where { font-size: 13.5px; color: var(--soft); display: flex; flex-wrap: wrap; gap: 2px 14px; }
 .head { background: #fff; border: 1px solid var(--line); border-left: 6px solid var(--soft); border-radius: 8px; padding: 14px 18px 8px; }
 .head.good { border-left-color: var(--good); } .head.watch { border-left-color: #e0a100; } .head.bad { border-left-color: var(--bad); }
 .answers { display: grid; grid-template-columns: 1fr 1fr; gap: 4px 28px; margin: 10px 0 6px; }
 .answers h3 { font-size: 13px; color: var(--soft); margin: 6px 0 0; font-weight: 600; } .answers p { margin: 0 0 8px; overflow-wrap: anywhere; }
 .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 10px; margin: 12px 0 0; }
 .tile { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 9px 13px; }
 .tile b { display: block; font-size: 17px; } .tile span { color: var(--soft); font-size: 12.5px; line-height: 1.35; display: block; }
 .card { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; overflow-x: auto; }
 table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
 th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid #d3d9e2; padding: 4px 8px; vertical-align: bottom; }
 td { border-bottom: 1px solid #eef1f5; padding: 5px 8px; vertical-align: top; } tr:last-child td { border-bottom: 0; }
 .n { text-align: right; white-space: nowrap; } .nw { white-space: nowrap; } td.name { max-width: 180px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
 .heat { table-layout: fixed; } .heat th, .heat td { padding: 0; border: 0; font-size: 11px; line-height: 1; } .heat .label { width: 132px; }
 .heat td.name { padding: 0 8px 0 0; font-size: 12.5px; line-height: 19px; max-width: 132px; } .heat .last { width: 50px; text-align: right; font-size: 12px; white-space: nowrap; vertical-align: middle; }
 .heat th.group { border-left: 1px solid #c9d0da; padding: 0 0 3px 3px; white-space: nowrap; overflow: hidden; } .heat th.col { text-align: center; font-weight: 400; padding-bottom: 3px; letter-spacing: -0.3px; }
 .heat th.moved { color: var(--bad); font-weight: 700; } .heat td.cell { height: 19px; border: 1px solid #fff; background: repeating-linear-gradient(135deg, #fff 0 3px, #edf0f4 3px 5px); }
 .heat .change { border-left: 2px solid var(--ink); } .heat td.vol { height: 18px; vertical-align: bottom; padding: 0 1px; border-bottom: 3px solid #fff; } .heat td.vol i { display: block; background: #c9d1dc; min-height: 1px; }
 .key { display: inline-flex; align-items: center; gap: 5px; margin: 8px 12px 0 0; font-size: 12.5px; color: var(--soft); } .key i { width: 22px; height: 12px; border-radius: 2px; display: inline-block; border: 1px solid #dfe4ea; }
 .key i.none { background: repeating-linear-gradient(135deg, #fff 0 3px, #dfe4ea 3px 5px); }
 .bars { display: grid; grid-template-columns: 150px minmax(120px, 1fr) 52px minmax(0, 300px); gap: 3px 10px; align-items: center; font-size: 13px; }
 .bars .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; } .bars .track { position: relative; height: 15px; background: #f3f5f8; } .bars .track i { position: absolute; inset: 0 auto 0 0; border-radius: 0 2px 2px 0; }
 .bars .track u { position: absolute; top: -2px; bottom: -2px; width: 0; border-left: 1.5px dashed #6b7480; } .bars .value { text-align: right; font-variant-numeric: tabular-nums; } .bars .told { color: var(--soft); font-size: 12.5px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
 .bars .axis { position: relative; height: 17px; font-size: 11.5px; color: var(--soft); } .bars .axis span { position: absolute; white-space: nowrap; padding: 0 3px; } .bars .axis span:first-child { transform: translateX(-100%); }
 .bars em { font-style: normal; } .dim { color: #8a929d; } .late { direction: rtl; } .late > * { direction: ltr; }
 .path { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin: 6px 0 8px; } .path .s { border: 1px solid #cdd4de; border-radius: 999px; padding: 2px 11px; font-size: 13px; background: #fff; color: var(--soft); }
 .path .was { border-color: #7d93b2; color: var(--ink); } .path .is { background: var(--ink); border-color: var(--ink); color: #fff; font-weight: 600; } .path .bad { background: var(--bad); border-color: var(--bad); }
 .square { width: 320px; flex: none; display: block; } .square text { font-size: 12px; fill: #5b6470; } .pair { display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: flex-start; } .pair table { flex: 1 1 560px; width: auto; }
 .chart { min-width: 640px; width: 100%; height: auto; display: block; } .chart text { font-size: 12px; fill: #5b6470; }
 .critical, .reject { color: var(--bad); font-weight: 600; } .warning, .warn { color: var(--watch); font-weight: 600; } .severe { color: var(--bad); font-weight: 600; } .promote { color: var(--good); font-weight: 600; } .inconclusive { color: var(--soft); font-weight: 600; }
 @media (max-width: 700px) { .wide { min-width: 860px; } main { padding: 12px 10px 40px; } h1 { font-size: 21px; } .answers { grid-template-columns: 1fr; } .card { padding: 10px; }
  .bars { grid-template-columns: 96px minmax(80px, 1fr) 40px; } .bars .told { grid-column: 1 / -1; margin: -3px 0 5px; white-space: normal; } .bars .told:empty { display: none; }
  .heat .label, .heat td.name { width: 92px; max-width: 92px; font-size: 11px; } .bars em { display: none; } .heat th.col:nth-child(even) { font-size: 0; } .heat .last { width: 40px; font-size: 11px; } .heat th.col { font-size: 9px; } .tiles { grid-template-columns: 1fr 1fr; } }
 @media print { body { background: #fff; font-size: 12px; -webkit-print-color-adjust: exact; print-color-adjust: exact; } main { max-width: none; padding: 0; } .card, .tile, .head { break-inside: avoid; } .card { overflow: visible; } .chart, .wide { min-width: 0; } h2 { break-after: avoid; } a { color: inherit; } }
"""

CHART = """
<svg class="chart" viewBox="0 0 {{ metric.width }} {{ metric.height }}" role="img" aria-label="{{ r.measure.metric }} by window">
{% set f = metric.frame %}
{% if metric.waiting %}<rect x="{{ metric.waiting }}" y="{{ f.top }}" width="{{ f.right - metric.waiting }}" height="{{ f.bottom - f.top }}" fill="#f3f5f8"/><text x="{{ (metric.waiting + f.right) / 2 }}" y="{{ f.bottom - 8 }}" text-anchor="middle">{% if f.right - metric.waiting > 110 %}labels not in yet{% endif %}</text>{% endif %}
{% for t in metric.ticks_y %}<line x1="{{ f.left }}" x2="{{ f.right }}" y1="{{ t.at }}" y2="{{ t.at }}" stroke="#e6eaf0"/><text x="{{ f.left - 6 }}" y="{{ t.at + 4 }}" text-anchor="end">{{ t.label }}</text>{% endfor %}
{% for t in metric.ticks_x %}<text x="{{ t.at }}" y="{{ metric.height - 8 }}" text-anchor="{{ 'end' if t.at > f.right - 30 else 'middle' }}">{{ t.label }}</text><line x1="{{ t.at }}" x2="{{ t.at }}" y1="{{ f.bottom }}" y2="{{ f.bottom + 5 }}" stroke="#aeb6c1"/>{% endfor %}
<line x1="{{ f.left }}" x2="{{ f.right }}" y1="{{ f.bottom }}" y2="{{ f.bottom }}" stroke="#aeb6c1"/>
{% for one in metric.releases %}{% set c = '#b3261e' if one.action == 'rollback' else '#1a7f46' %}<g><title>{{ one.told }}</title><line x1="{{ one.x }}" x2="{{ one.x }}" y1="{{ f.top - 2 }}" y2="{{ f.bottom }}" stroke="{{ c }}" stroke-width="1.4" stroke-dasharray="{{ '4 3' if one.action == 'rollback' else '' }}"/><text x="{{ one.x }}" y="{{ 13 if one.raised else 27 }}" text-anchor="middle" style="fill: {{ c }}; font-weight: 600">{{ one.label }}</text></g>{% endfor %}
{% for line in metric.lines %}<polyline points="{{ line }}" fill="none" stroke="#1a5fb4" stroke-width="1.8"/>{% endfor %}
{% for p in metric.points %}<g><title>{{ p.told }}</title><line x1="{{ p.x }}" x2="{{ p.x }}" y1="{{ p.low }}" y2="{{ p.high }}" stroke="#1a5fb4" stroke-width="1.6" opacity="0.45"/><circle cx="{{ p.x }}" cy="{{ p.y }}" r="4" fill="{{ '#fff' if p.part else '#1a5fb4' }}" stroke="#1a5fb4" stroke-width="1.6"/></g>{% endfor %}
{% for p in metric.guesses %}<path d="M {{ p.x }} {{ p.y - 5 }} l 5 5 l -5 5 l -5 -5 z" fill="none" stroke="#9a6200" stroke-width="1.5"><title>{{ p.told }}</title></path>{% endfor %}
{% for p in metric.verdicts %}<g><title>{{ p.told }}</title><line x1="{{ p.x }}" x2="{{ p.x }}" y1="{{ f.top + 12 }}" y2="{{ f.bottom }}" stroke="#c9d0da" stroke-dasharray="2 3"/>{% if p.mark == 'cross' %}<path d="M {{ p.x - 4 }} {{ f.top }} l 8 8 m -8 0 l 8 -8" stroke="#b3261e" stroke-width="2.2" fill="none"/>{% else %}<circle cx="{{ p.x }}" cy="{{ f.top + 4 }}" r="4.5" fill="#fff" stroke="#5b6470" stroke-width="2"/>{% endif %}</g>{% endfor %}
</svg>
"""

GAINS = """
<svg class="chart" viewBox="0 0 {{ gains.width }} {{ gains.height }}" role="img" aria-label="what a retraining would gain, by window">
{% set f = gains.frame %}
{% for t in gains.ticks_y %}<line x1="{{ f.left }}" x2="{{ f.right }}" y1="{{ t.at }}" y2="{{ t.at }}" stroke="#e6eaf0"/><text x="{{ f.left - 6 }}" y="{{ t.at + 4 }}" text-anchor="end">{{ t.label }}</text>{% endfor %}
{% for t in gains.ticks_x %}<text x="{{ t.at }}" y="{{ gains.height - 8 }}" text-anchor="{{ 'end' if t.at > f.right - 30 else 'middle' }}">{{ t.label }}</text><line x1="{{ t.at }}" x2="{{ t.at }}" y1="{{ f.bottom }}" y2="{{ f.bottom + 4 }}" stroke="#aeb6c1"/>{% endfor %}
<line x1="{{ f.left }}" x2="{{ f.right }}" y1="{{ gains.zero }}" y2="{{ gains.zero }}" stroke="#aeb6c1"/>
<g><title>what a retraining costs</title><line x1="{{ f.left }}" x2="{{ f.right }}" y1="{{ gains.price }}" y2="{{ gains.price }}" stroke="#b3261e" stroke-dasharray="6 4"/><text x="{{ f.left + 4 }}" y="{{ gains.price - 4 }}">price</text></g>
{% for one in gains.done %}<g><title>{{ one.told }}</title><line x1="{{ one.x }}" x2="{{ one.x }}" y1="{{ f.top }}" y2="{{ f.bottom }}" stroke="#1a7f46" stroke-width="1.5"/><text x="{{ one.x }}" y="{{ f.top - 6 }}" text-anchor="{{ 'end' if one.x > f.right - 30 else 'middle' }}">retrained</text></g>{% endfor %}
{% for line in gains.lines %}<polyline points="{{ line }}" fill="none" stroke="#1a5fb4" stroke-width="1.8"/>{% endfor %}
{% for p in gains.points %}<g><title>{{ p.told }}</title><line x1="{{ p.x }}" x2="{{ p.x }}" y1="{{ p.low }}" y2="{{ p.high }}" stroke="#1a5fb4" stroke-width="1.6" opacity="0.45"/><circle cx="{{ p.x }}" cy="{{ p.y }}" r="4" fill="#1a5fb4"/></g>{% endfor %}
</svg>
"""

KEPT = """
<svg class="square" viewBox="0 0 {{ honest.width }} {{ honest.height }}" role="img" aria-label="promised against delivered gains">
{% set f = honest %}
{% for t in f.ticks_y %}<line x1="{{ f.left }}" x2="{{ f.right }}" y1="{{ t.at }}" y2="{{ t.at }}" stroke="#e6eaf0"/><text x="{{ f.left - 6 }}" y="{{ t.at + 4 }}" text-anchor="end">{{ t.label }}</text>{% endfor %}
{% for t in f.ticks_x %}<line x1="{{ t.at }}" x2="{{ t.at }}" y1="{{ f.top }}" y2="{{ f.bottom }}" stroke="#e6eaf0"/><text x="{{ t.at }}" y="{{ f.bottom + 16 }}" text-anchor="middle">{{ t.label }}</text>{% endfor %}
<text x="{{ (f.left + f.right) / 2 }}" y="{{ f.height - 6 }}" text-anchor="middle">promised, nats</text><text x="{{ f.left }}" y="14">delivered, nats</text>
<line x1="{{ f.left }}" y1="{{ f.bottom }}" x2="{{ f.right }}" y2="{{ f.top }}" stroke="#5b6470" stroke-dasharray="6 4"><title>delivered what was promised</title></line>
{% for p in f.points %}{% set c = {"promote": "#1a7f46", "reject": "#b3261e"}.get(p.decision, "#5b6470") %}<g><title>{{ p.told }}</title><line x1="{{ p.left }}" x2="{{ p.right }}" y1="{{ p.y }}" y2="{{ p.y }}" stroke="{{ c }}" stroke-width="1.4" opacity="0.45"/><line x1="{{ p.x }}" x2="{{ p.x }}" y1="{{ p.low }}" y2="{{ p.high }}" stroke="{{ c }}" stroke-width="1.4" opacity="0.45"/><circle cx="{{ p.x }}" cy="{{ p.y }}" r="4" fill="{{ c }}"/></g>{% endfor %}
</svg>
"""

TEMPLATE = (
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ v.case }}, {{ window(r.window.end) }}: {{ headline }}</title>
<style>"""
    + STYLE
    + """</style></head><body><main>
<div class="where"><span><b>Perennial</b>, case {{ v.case }}</span><span>window {{ window(r.window.end) }}: {{ r.window.start | day }} to {{ r.window.end | day }}, 0:00 UTC, end excluded</span><span>judged as of {{ v.as_of | day }}</span></div>
<div class="head {{ tone }}">
<h1>{{ headline }}</h1>
<div class="answers">{% for question, answer in answers %}<div><h3>{{ question }}</h3><p>{{ answer }}</p></div>{% endfor %}</div>
</div>

<div class="tiles">
 <div class="tile"><b>{{ r.current_rows | count }} rows</b><span>served in the window{% if v.served %}, by {% for one in v.served %}v{{ one.version }} ({{ one.rows | count }}){{ ", " if not loop.last }}{% endfor %}{% endif %}{% if r.quality.volume %}; {{ "%.2g" | format(r.quality.volume) }} times the reference's rows per day{% endif %}{% if r.quality.refused.rows %}; {{ r.quality.refused.rows | count }} more were refused ({{ "%.1f%%" | format(100 * r.quality.refused.share) }} of all){% endif %}</span></div>
 <div class="tile"><b>{% if v.champion %}v{{ v.champion.champion }} since {{ v.champion.as_of | day }}{% else %}no champion{% endif %}</b><span>{% if v.champion %}the champion that the window was compared with, trained on {{ r.reference_rows | count }} rows{% else %}nothing to compare with{% endif %}</span></div>
 <div class="tile"><b>{% if r.features %}{{ r.features | selectattr("drifted") | list | length }} of {{ r.features | rejectattr("ignored") | list | length }} moved{% else %}nothing compared{% endif %}</b><span>features whose PSI is surely above {{ v.policy.delta0 }} nats (false discovery rate {{ v.policy.q }}){% if r.diagnosis.since %}; since {{ r.diagnosis.since | day }}{% endif %}</span></div>
 <div class="tile"><b>{{ r.state | replace("_", " ") | lower }}</b><span>{{ meaning.get(r.state, "") }}{% if r.episode %}; episode {{ r.episode }}{% endif %}</span></div>
 <div class="tile"><b>{{ v.alerts | length }} open alert{{ "" if v.alerts | length == 1 else "s" }}</b><span>{% if v.alerts %}{% for name in ("critical", "warning", "info") %}{% set n = v.alerts | selectattr("severity", "equalto", name) | list | length %}{% if n %}{{ n }} {{ name }} {% endif %}{% endfor %}{% else %}nobody has to look{% endif %}</span></div>
</div>

{% if r.quality.problems or r.quality.warnings %}
<h2>{{ "What is wrong with the rows" if r.quality.problems else "About the rows" }}</h2>
<div class="card">{% for text in r.quality.problems %}<div class="critical">{{ text.message }}</div>{% endfor %}{% for text in r.quality.warnings %}<div>{{ text.message }}</div>{% endfor %}</div>
{% endif %}

{% if v.alerts %}
<h2>Open alerts</h2>
<div class="card"><table class="wide"><tr><th>severity</th><th>what</th><th>since</th><th class="n">runs</th><th>owner</th><th>runbook</th></tr>
{% for a in alerts %}<tr><td class="{{ a.severity }}">{{ a.severity }}{% if a.state == "silenced" %} (silenced){% endif %}</td><td>{{ a.summary }}</td><td class="nw">{{ a.first_seen | day }}</td><td class="n">{{ a.count }}</td><td>{{ a.owner }}</td><td>{% if a.runbook | safe_link %}<a href="{{ a.runbook }}">{{ a.rule }}</a>{% else %}{{ a.rule }}: {{ a.runbook }}{% endif %}</td></tr>{% endfor %}
</table></div>
{% endif %}

<h2>What moved in this window</h2>
{% if bars.rows %}
<p class="soft">Debiased PSI of {{ window(r.window.end) }} against v{{ r.model_version }}'s reference, in nats, on a logarithmic axis{% if bars.of > bars.rows | length %}; the {{ bars.rows | length }} strongest of {{ bars.of }}{% endif %}. Bold: moved by more than {{ v.policy.delta0 }} nats beyond doubt. Grey: shown, never decides.</p>
<div class="card"><div class="bars">
<span></span><span class="axis">{% for mark in bars.marks %}<span style="left: {{ mark.at }}%"><em>{{ mark.name }} </em>{{ mark.value }}</span>{% endfor %}</span><span></span><span class="told"></span>
{% for row in bars.rows %}<span class="name{{ ' dim' if row.ignored }}" title="{{ row.feature }}">{% if row.drifted %}<b>{{ row.feature }}</b>{% else %}{{ row.feature }}{% endif %}</span><span class="track"><i style="width: {{ row.width }}%; background: {{ '#cfd5dd' if row.ignored else row.colour }}"></i>{% for mark in bars.marks %}<u style="left: {{ mark.at }}%"></u>{% endfor %}</span><span class="value">{{ row.value }}</span><span class="told">{% if row.moved %}{% if row.moved.kind == "number" %}median {{ row.moved.before[1] | quantity }} → {{ row.moved.now[1] | quantity }} <span class="dim">(middle half {{ row.moved.now[0] | quantity }} to {{ row.moved.now[2] | quantity }})</span>{% else %}{{ row.moved.value if row.moved.value is not none else "undeclared values" }}: {{ "%.0f%%" | format(100 * row.moved.before) }} → {{ "%.0f%%" | format(100 * row.moved.now) }} of the rows{% endif %}{% endif %}</span>
{% endfor %}</div></div>
{% else %}<div class="card">{% if not r.model_version %}No champion, so no reference to compare with.{% elif r.quality.unread %}{{ r.quality.unread | count }} rows of the window cannot be read yet, so it is not compared.{% elif not r.current_rows %}No rows were served in this window, so nothing can have moved.{% else %}{{ r.current_rows | count }} rows are too few to compare: {{ v.policy.min_rows }} values of a feature are needed.{% endif %}</div>{% endif %}

{% if r.diagnosis.embeddings %}<p class="soft">Embeddings of the texts: KL of the window from the reference on fixed random projections is {{ "%.3f" | format(r.diagnosis.embeddings.kl) }} nats in the mean, {{ "%.3f" | format(r.diagnosis.embeddings.most) }} at most; from {{ r.diagnosis.embeddings.threshold }} on they count as moved. Shown, never decides.</p>{% endif %}

<h2>What moved, {{ "day by day" if heat.unit == "day" else "window by window" }}</h2>
{% if heat.columns and heat.rows %}
<p class="soft">Debiased PSI in nats, {% if heat.unit == "day" %}of every UTC day with at least {{ v.policy.min_rows }} values, against v{{ r.model_version }}'s reference{% else %}of every {{ v.kind }} against the champion that served then (dark line: another champion){% endif %}; strongest now on top{% if heat.of > heat.rows | length %}, {{ heat.rows | length }} of {{ heat.of }} features{% endif %}. Grey bars: rows.{% if r.diagnosis.dates and heat.unit == "day" %} Red dates: days outside of the reference's range.{% endif %}</p>
<div class="card"><table class="heat"><tr><th class="label"></th>{% for g in heat.groups %}<th class="group" colspan="{{ g.span }}">{{ g.label }}</th>{% endfor %}<th class="last"></th></tr>
<tr><th class="label"></th>{% for c in heat.columns %}<th class="col{{ ' moved' if c.moved }}" title="{{ c.told }}">{{ c.label }}</th>{% endfor %}<th class="last">newest</th></tr>
<tr><td class="name dim">rows</td>{% for c in heat.columns %}<td class="vol{{ ' change' if c.change }}" title="{{ c.told }}"><i style="height: {{ c.volume }}%"></i></td>{% endfor %}<td class="last"></td></tr>
{% for row in heat.rows %}<tr><td class="name{{ ' dim' if row.ignored }}" title="{{ row.feature }}">{{ row.feature }}</td>{% for c in row.cells %}<td class="cell{{ ' change' if c.change }}" title="{{ c.told }}"{% if c.colour %} style="background: {{ c.colour }}"{% endif %}></td>{% endfor %}<td class="last">{{ row.newest }}</td></tr>
{% endfor %}</table>
{% for one in heat.legend %}<span class="key"><i style="background: {{ one.colour }}"></i>{{ one.label }}{% if loop.index == 3 %} warn{% elif loop.index == 4 %} severe{% elif loop.last %} and more{% endif %}</span>{% endfor %}<span class="key"><i class="none"></i>too few rows</span></div>
{% else %}<div class="card">Nothing has been compared yet.</div>{% endif %}

<h2>How well the model does, on labels that have arrived</h2>
{% if metric %}
<p class="soft">{{ r.measure.metric | capitalize if r.measure.estimable else r.measure.metric }} in {{ r.measure.unit }} by {{ v.kind }} of the prediction, with its {{ confidence }} interval; lower is better. Hollow: less than half of the rows have a label. Green line: another version serves; dashed red: rolled back; cross: a candidate was rejected; ring: inconclusive.{% if metric.guesses %} Brown diamonds: estimated from the scores alone, without labels.{% endif %}</p>
<div class="card late">"""
    + CHART
    + """</div>
{% else %}<div class="card">{{ coverage }} The metric is drawn once labels are there.</div>{% endif %}
{% if figures.rows %}
<div class="card" style="margin-top: 10px"><table class="wide"><tr><th>{{ v.kind }}</th><th>version</th><th class="n">rows</th><th class="n">with a label</th><th class="n">label delay, median</th>{% for name in figures.columns %}<th class="n">{{ name }}</th>{% endfor %}</tr>
{% for row in figures.rows %}<tr><td class="nw">{{ window(row.of.end) }}</td><td>v{{ row.of.version }}</td><td class="n">{{ row.of.rows | count }}</td><td class="n">{{ row.of.labelled | count }}{% if row.of.coverage is not none %} ({{ "%.0f%%" | format(100 * row.of.coverage) }}){% endif %}</td><td class="n">{% if row.of.delay_days is not none %}{{ "%.1f" | format(row.of.delay_days) }} days{% else %}-{% endif %}</td>{% for cell in row.cells %}<td class="n">{% if cell.value is not none %}{{ cell.value | amount }}{% if cell.low is not none %} <span class="dim">{{ cell.low | amount(cell.value) }} to {{ cell.high | amount(cell.value) }}</span>{% endif %}{% else %}-{% endif %}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}

{% if gain %}
<h2>What a retraining would gain</h2>
<p>{{ gain }}</p>
{% if gains %}
<p class="soft">{{ basis }} {{ compared }}</p>
<p class="soft">{% if r.measure.estimable %}Nats of log-loss{% else %}{{ r.measure.loss | capitalize }} ({{ r.measure.loss_unit }}){% endif %} per row that newer rows would have saved in each window, with its {{ gain_confidence }} interval; dashed: what a retraining must save to have paid; green: retrained.</p>
<div class="card late">"""
    + GAINS
    + """</div>
{% endif %}
{% endif %}

{% if promise %}
<h2>What was promised, and what came of it</h2>
<p>{{ promise }} {{ honesty }}</p>
{% if kept %}
<p class="soft">Promised: what the probe measured when the training was asked for, or last before it, in nats of log-loss per row. Delivered: the champion's log-loss minus the candidate's on the gate's holdout. They are other rows, and the probe is another model.{% if honest %} Dashed: delivered what was promised; green: promoted, red: rejected, grey: inconclusive.{% endif %}</p>
<div class="card"><div class="pair">
{% if honest %}"""
    + KEPT
    + """{% endif %}
<table><tr><th>training of</th><th class="n">promised</th><th>held against</th><th class="n">price</th><th class="n">delivered</th><th>verdict</th></tr>
{% for one in kept %}<tr><td class="nw">{{ one.judged.as_of | day }}</td><td class="n" title="on {{ one.promise.as_of | day }}">{{ one.promise.gain | interval }}</td><td class="nw">{{ "an older probe" if one.promise.against == "past" else "the champion" }}</td><td class="n">{{ "%g" | format(one.promise.price) }}</td><td class="n">{{ one.delivered | interval }}</td><td class="{{ one.judged.verdict.decision }}">{{ one.judged.verdict.decision }}</td></tr>
{% endfor %}</table></div></div>
{% endif %}
{% endif %}

<h2>What the policy decided</h2>
<div class="path">{% for state in states %}<span class="s{{ ' is' if state == r.state else ' was' if state in r.policy.path }}">{{ state | lower }}</span>{{ "→" if not loop.last }}{% endfor %}{% if r.state not in states %}<span class="s is{{ ' bad' if r.state == blocked }}">{{ r.state | replace("_", " ") | lower }}</span>{% endif %}</div>
<p class="soft">{% if r.policy.path and r.policy.path | length > 1 %}In this window: {{ r.policy.path | join(" → ") | replace("_", " ") | lower }}. {% endif %}{% if r.policy.path %}Sequential test of the {{ "error rate" if r.measure.estimable else "capped squared errors" }}: e to the power of {{ "%.1f" | format(r.policy.log_e) }}, alarm at {{ v.policy.cusum_threshold | count }}. {% endif %}{% if r.policy.cooldown_until %}Cooldown until {{ r.policy.cooldown_until | day }}. {% endif %}{{ r.labels.fresh_labels | count }} new labelled rows since the champion was trained.</p>
<div class="card"><table class="wide"><tr><th>{{ v.kind }}</th><th>state</th><th>asked for</th><th>strongest, PSI</th><th>reason</th><th>what the training said</th></tr>
{% for d in decisions %}<tr><td class="nw">{{ window(d.report.window.end) }}</td><td class="nw">{{ d.report.state | replace("_", " ") | lower }}</td><td>{{ "-" if d.report.action == "none" else d.report.action }}</td><td class="nw">{% if d.strongest %}{{ d.strongest.feature }} <span class="{{ d.strongest.severity }}">{{ d.strongest.debiased_psi | psi }}</span>{% else %}-{% endif %}</td><td>{{ d.report.reason }}</td><td>{% if d.verdict %}<b class="{{ d.verdict.decision }}">{{ d.verdict.decision }}</b>{% if d.verdict.evidence.lift %} {{ d.verdict.evidence | lift(r.measure) }}, {{ d.verdict.evidence.n | count }} rows{% endif %}{% elif d.report.action == "retrain" %}no verdict yet{% endif %}</td></tr>
{% endfor %}</table></div>

<h2>Versions</h2>
{% if v.releases %}
<div class="card"><table class="wide"><tr><th>version</th><th>since</th><th>by</th><th>asked for</th><th>reason</th></tr>
{% for one in (v.releases + v.stages) | sort(attribute="seq", reverse=true) %}{% if loop.index <= 8 %}{% set version, did = moved(one, v.stages) %}<tr><td>v{{ version }}</td><td class="nw">{{ one.as_of | day }}</td><td>{{ did }}</td><td class="nw">{{ asked_by.get(one.trigger, one.trigger) }}</td><td>{{ one.reason }}</td></tr>{% endif %}{% endfor %}
</table></div>
{% else %}<div class="card">No version has been released yet.</div>{% endif %}
<p class="soft" style="margin-top: 14px">{% if links.model %}<a href="{{ links.model }}">The champion in MLflow</a> · {% endif %}{% if links.training %}<a href="{{ links.training }}">the training run of this episode</a> · {% endif %}{% if links.evidently %}<a href="{{ links.evidently }}">Evidently's page of this window</a> (drift/drift.html of this run) · {% endif %}{% if links.history %}<a href="{{ links.history }}">all drift runs in Airflow</a>{% endif %}</p>
<p class="soft">PSI: population stability index, how far two distributions are apart; debiased: less what so few rows would give by chance. Nats: units of the natural logarithm. Times are UTC; a label counts once it has arrived by {{ v.as_of | day }}.</p>
</main></body></html>
"""
)
