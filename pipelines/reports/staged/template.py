"""The template of a rollout's page: HTML and drawings in one, escaped by Jinja; light, for phones and for paper."""

from pipelines.reports.daily.template import STYLE

CHART = """{% macro chart(d, about) %}<svg class="chart" viewBox="0 0 {{ d.plot.width }} {{ d.plot.height }}" role="img" aria-label="{{ about }}">
{% set f = d.plot %}
{% for t in d.values %}<line x1="{{ f.left }}" x2="{{ f.right }}" y1="{{ t.at }}" y2="{{ t.at }}" stroke="#e6eaf0"/><text x="{{ f.left - 6 }}" y="{{ t.at + 4 }}" text-anchor="end">{{ t.label }}</text>{% endfor %}
{% for t in f.times %}<text x="{{ t.at }}" y="{{ f.height - 8 }}" text-anchor="{{ 'end' if t.at > f.right - 20 else 'middle' }}">{{ t.label }}</text><line x1="{{ t.at }}" x2="{{ t.at }}" y1="{{ f.bottom }}" y2="{{ f.bottom + 5 }}" stroke="#aeb6c1"/>{% endfor %}
<line x1="{{ f.left }}" x2="{{ f.right }}" y1="{{ f.bottom }}" y2="{{ f.bottom }}" stroke="#aeb6c1"/>
{% if d.area %}<polygon points="{{ d.area }}" fill="#1a5fb4" opacity="0.13"/>{% endif %}
{% if d.line %}<polyline points="{{ d.line }}" fill="none" stroke="#1a5fb4" stroke-width="1.8" stroke-linejoin="round"/>{% endif %}
{% if d.limit is not none %}<line x1="{{ f.left }}" x2="{{ f.right }}" y1="{{ d.limit }}" y2="{{ d.limit }}" stroke="#5b6470" stroke-dasharray="6 4"/><text x="{{ f.left + 6 }}" y="{{ d.limit - 5 }}">{{ d.limit_told }}</text>{% endif %}
{% for p in d.points %}<g><title>{{ p.told }}</title><circle cx="{{ p.x }}" cy="{{ p.y }}" r="{{ 3.5 if p.label else 2.4 }}" fill="{{ p.colour }}"/>{% if p.label %}<text x="{{ p.x }}" y="{{ p.y - 7 if p.y > f.top + 8 else p.y + 16 }}" text-anchor="{{ p.anchor }}" style="fill: {{ p.colour }}; font-weight: 600">{{ p.label }}</text>{% endif %}</g>{% endfor %}
</svg>{% endmacro %}"""

TEMPLATE = (
    CHART
    + """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ v.case }}: {{ headline }}</title>
<style>"""
    + STYLE
    + """ .e { display: inline-block; width: 90px; height: 8px; background: #f0f3f7; margin-right: 8px; vertical-align: 1px; } .e i { display: block; height: 8px; background: #1a5fb4; } .e i.over { background: var(--bad); }
 ul { margin: 4px 0 10px; padding-left: 20px; max-width: 880px; } td.why { overflow-wrap: anywhere; min-width: 220px; }
</style></head><body><main>
<div class="where"><span><b>Perennial</b>, case {{ v.case }}</span><span>rollout of version {{ v.challenger }} beside version {{ v.champion }}</span><span>opened {{ v.opened | moment }} UTC</span><span>{{ "ended" if v.over else "as of" }} {{ v.until | moment }} UTC</span></div>
<div class="head {{ tone }}">
<h1>{{ headline }}</h1>
<div class="answers">{% for question, answer in answers %}<div><h3>{{ question }}</h3><p>{{ answer }}</p></div>{% endfor %}</div>
</div>

<h2>How many met it</h2>
<p class="soft">Share of all keys that version {{ v.challenger }} answers. A key keeps its arm: {% if v.compared and v.compared.bandit %}only the bandit moves some near the limit, both ways{% else %}a higher share only adds keys{% endif %}.</p>
<div class="card late">{{ chart(weights, "share of keys over time") }}</div>
<div class="card" style="margin-top: 10px"><table class="wide"><tr><th class="n">row</th><th>when</th><th>what</th><th>stage</th><th class="n">share</th><th>by</th><th>why</th></tr>
{% for one in v.events %}<tr><td class="n">{{ one.seq }}</td><td class="nw">{{ one.at | moment }}</td><td class="{{ 'critical' if one.action in ('abort', 'rollback') else 'promote' if one.action in ('promote', 'settle') else '' }}">{{ one.action }}</td><td>{{ one.stage }}</td><td class="n">{{ one.share | share }}</td><td>{{ one.who }}</td><td class="why">{{ one.why }}</td></tr>
{% endfor %}</table></div>

{% if v.sides %}
<h2>What its traffic came to</h2>
<p class="soft">{{ met }} Latencies are of whole requests, rounded up to the next of bins that are 15% apart.</p>
<div class="card"><table><tr><th>arm</th><th class="n">answered</th><th class="n">failed</th><th class="n">refused</th><th class="n">p50, ms</th><th class="n">p95, ms</th><th class="n">p99, ms</th></tr>
{% for one in v.sides %}<tr><td class="nw">{{ one.name }} (v{{ one.version }})</td><td class="n">{{ one.answered | count }}</td><td class="n">{{ one.failed | count }}</td><td class="n">{{ one.refused | count }}</td>{% for ms in (one.p50, one.p95, one.p99) %}<td class="n">{{ "-" if ms is none else "%.3g" | format(ms) }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endif %}

{% if v.compared %}{% set c = v.compared %}
<h2>The experiment: {{ c.outcome }}, {{ c.better }} is better</h2>
{% if c.unsplit %}<div class="card critical">{{ c.unsplit }}</div>{% endif %}
<p>{{ c.verdict | capitalize }}. A unit counts once, {{ "%g" | format(c.horizon_hours) }} hour{{ "" if c.horizon_hours == 1 else "s" }} after its first answer, with what was known by then.</p>
{% if estimates %}
<p class="soft">{{ "Odds of the challenger over the champion's" if c.scale == "odds ratio" else "The challenger's mean minus the champion's" }} with its always-valid interval: it holds at all moments together, so one may look at any time. Decided when the band leaves the dashed line.</p>
<div class="card late">{{ chart(estimates, "estimate over time") }}</div>
{% else %}<div class="card">Too few units are mature for an interval.</div>{% endif %}
<div class="card" style="margin-top: 10px"><table><tr><th>arm</th><th class="n">units</th><th class="n">not counted yet</th>{% if c.arms[0].unlabelled or c.arms[1].unlabelled %}<th class="n">without a label</th>{% endif %}<th class="n">counted</th><th class="n">mean</th></tr>
{% for one in c.arms %}<tr><td>{{ one.name }}</td><td class="n">{{ one.begun | count }}</td><td class="n">{{ one.waiting | count }}</td>{% if c.arms[0].unlabelled or c.arms[1].unlabelled %}<td class="n">{{ one.unlabelled | count }}</td>{% endif %}<td class="n">{{ one.mature | count }}</td><td class="n">{{ one.mean | amount }}</td></tr>
{% endfor %}</table></div>
<p class="soft" style="margin-top: 10px">{{ "It would have ended by:" if v.over else "What ends it:" }}</p>
<ul>{% for text in c.ends %}<li>{{ text }}</li>{% endfor %}</ul>
{% endif %}

{% if v.guarded %}{% set g = v.guarded %}
<h2>The guard</h2>
<p class="soft">Evidence against version {{ v.challenger }}: the weighted sum of its signals' e-values after each window. At {{ "%g" | format(g.limit) }} it is taken back, which comes with a chance of at most {{ "%.3g" | format(100 / g.limit) }}% if nothing is wrong, however often one looks.</p>
{% if evidence %}<div class="card late">{{ chart(evidence, "evidence against the challenger over time") }}</div>{% endif %}
{% if g.signals %}<div class="card" style="margin-top: 10px"><table class="wide"><tr><th>signal</th><th class="n">e-value</th><th class="n">weight</th><th></th><th>what is seen</th></tr>
{% for one in g.signals %}<tr><td class="nw">{{ one.name | replace("_", " ") }}</td><td class="n">{{ one.e_value | e }}</td><td class="n">{{ "%.2f" | format(one.weight) }}</td><td class="nw"><span class="e"><i{% if one.weight * one.e_value >= g.limit %} class="over"{% endif %} style="width: {{ bar(one) }}%"></i></span></td><td>{{ one.told }}</td></tr>
{% endfor %}</table></div>{% endif %}
{% endif %}
<p class="soft" style="margin-top: 14px">Times are UTC, by the wall clock. Champion: version {{ v.champion }}, which served when the rollout was opened; challenger: version {{ v.challenger }}.</p>
</main></body></html>
"""
)
