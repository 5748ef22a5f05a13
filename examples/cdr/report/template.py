"""The template of a page of results: a file by itself, without scripts or parts from elsewhere.

Jinja escapes every value. On a narrow screen a wide table shows each row as a block of its own,
with the head of the column beside each value, and a narrow one stays a table.
"""

from __future__ import annotations

TEMPLATE = """\
{% macro table(sheet) %}
<div class="wide"><table class="{{ 'blocks' if sheet.heads|length > 4 else 'small' }}">
{% if sheet.title %}<caption>{{ sheet.title }}</caption>{% endif %}
<thead>
{% if sheet.grouped %}<tr>{% for heading, heads in sheet.groups %}<th colspan="{{ heads|length }}">
{{- heading }}</th>{% endfor %}</tr>{% endif %}
<tr>{% for _, heads in sheet.groups %}{% set outer = loop.index0 %}{% for head in heads %}
<th{% if outer == 0 and loop.index0 < sheet.left %} class="left"{% endif %}>{{ head }}</th>
{%- endfor %}{% endfor %}</tr>
</thead>
<tbody>
{% for row in sheet.rows %}<tr>{% for cell in row %}
<td data-head="{{ sheet.heads[loop.index0] }}"
{%- if loop.index0 < sheet.left %} class="left"{% endif %}>{{ cell }}</td>
{%- endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% endmacro %}
{% macro category(one, top) %}
<tr><td class="left name">{{ one.name }}</td><td>{{ '{:,}'.format(one.count) }}</td>
<td>{{ '{:.0%}'.format(one.liked) }}</td><td>{{ '%.3f'|format(one.weight) }}
{%- if one.spread is not none %}<small> ± {{ '%.3f'|format(one.spread) }}</small>{% endif %}</td>
<td class="bar"><div><i style="width:{{ '%.1f'|format(100 * [one.weight, 0]|max / top) }}%"></i>
<b style="left:{{ '%.1f'|format(100 / top) }}%"></b></div></td></tr>
{% endmacro %}
{% macro weights(learned) %}
<h2>Learned weights: {{ learned.label }}</h2>
<p>{{ learned.sentence }}</p>
{% set bars = learned.histogram %}
{% set most = bars|map(attribute='count')|max %}
<figure>
<div class="histogram" role="img" aria-label="Histogram of the learned weights">
{%- for bar in bars %}<i style="height:{{ '%.1f'|format(100 * bar.count / most) }}%"></i>
{%- endfor %}</div>
<div class="axis"><span>{{ '%.2f'|format(bars[0].low) }}</span>
<span>{{ '%.2f'|format((bars[0].low + bars[-1].high) / 2) }}</span>
<span>{{ '%.2f'|format(bars[-1].high) }}</span></div>
<figcaption>Number of behaviours by weight; the highest bar has {{ '{:,}'.format(most) }}.
</figcaption>
<details><summary>The numbers</summary><table class="small"><thead><tr><th>weight from</th>
<th>to</th><th>behaviours</th></tr></thead><tbody>
{% for bar in bars %}<tr><td>{{ '%.3f'|format(bar.low) }}</td><td>
{{- '%.3f'|format(bar.high) if not loop.last else 'all above' }}</td><td>
{{- '{:,}'.format(bar.count) }}</td></tr>
{% endfor %}</tbody></table></details>
</figure>
{% set shown, rest = learned.categories %}
{% set top = [shown|map(attribute='weight')|max, rest.weight if rest else 0, 1]|max * 1.05 %}
<h3>By category of the item</h3>
{% if learned.one_category %}<p>All items are of one category. With a file of ratings, --items
names a table with the columns item and category.</p>{% else %}
<div class="wide"><table class="small categories"><thead><tr><th class="left">category</th>
<th>behaviours</th><th>liked</th><th>mean weight</th><th class="bar">mark: 1</th></tr></thead>
<tbody>
{% for one in shown %}{{ category(one, top) }}{% endfor %}
{% if rest %}{{ category(rest, top) }}{% endif %}
</tbody></table></div>{% endif %}
{% for which, rows in learned.extremes.items() if rows %}
<h3>Behaviours of the {{ which }} weight</h3>
<div class="wide"><table class="small extremes"><thead><tr><th>weight</th><th class="left">item</th>
<th class="left user">user</th><th class="left">liked</th></tr></thead><tbody>
{% for one in rows %}<tr><td>{{ '%.3f'|format(one.weight) }}</td>
<td class="left name">{{ one.item }}<small>{{ one.item_id }}
{%- if not learned.one_category %}{{ ' · ' if one.item_id }}{{ one.category }}{% endif %}</small>
</td>
<td class="left name user">{{ one.user }}</td>
<td class="left">{{ 'yes' if one.liked else 'no' }}</td></tr>
{% endfor %}</tbody></table></div>
{% if learned.tied(which) %}<p>{{ '{:,}'.format(learned.tied(which)) }} more have the weight of the
last one.</p>{% endif %}
{% endfor %}
<p>The weights of all behaviours are in weights.parquet.</p>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ document.title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 2rem auto; padding: 0 1rem;
  max-width: 76rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 0.4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; overflow-wrap: normal; }
th.left, td.left { text-align: left; }
.blocks tr > :first-child { white-space: nowrap; }
.wide + .wide { margin-top: 1.2rem; }
thead tr:first-child th[colspan] { text-align: center; border-bottom: 1px solid #888; }
caption { text-align: left; font-weight: 600; padding: 0.8rem 0 0.2rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: 0.9rem; }
pre { background: #f5f5f5; padding: 0.8rem; white-space: pre-wrap; font-size: 0.85rem; }
details { margin: 0.6rem 0; } summary { cursor: pointer; }
.conclusions { border-left: 4px solid #0072B2; background: #f2f7fb; padding: 0.5rem 1rem;
  margin: 1.2rem 0; }
.conclusions p { margin: 0.3rem 0; }
.user { min-width: 5.5rem; }
.name { overflow-wrap: anywhere; unicode-bidi: isolate; }
.categories td { white-space: nowrap; } .categories td.name { white-space: normal; }
small { color: #555; } .extremes small { display: block; }
.extremes tr > :first-child { width: 3.5rem; }
.categories, .extremes { width: 100%; max-width: 52rem; }
.bar { width: 38%; min-width: 5rem; text-align: left; color: #555; font-weight: 400; }
.bar div { position: relative; height: 0.95rem; margin-top: 0.15rem; background: #f2f2f2; }
.bar i { display: block; height: 100%; background: #0072B2; }
.bar b { position: absolute; top: -2px; bottom: -2px; width: 2px; background: #D55E00; }
.histogram { display: flex; align-items: flex-end; gap: 1px; height: 9rem; max-width: 40rem;
  border-bottom: 1px solid #666; }
.histogram i { flex: 1; background: #0072B2; }
.axis { display: flex; justify-content: space-between; max-width: 40rem; font-size: 0.85rem; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; padding: 0 0.8rem; }
  .blocks, .blocks tbody, .blocks tr, .blocks td, .blocks caption { display: block; }
  .blocks thead { display: none; }
  .blocks tr { padding: 0.4rem 0; border-bottom: 1px solid #bbb; }
  .blocks td, .blocks tr > :first-child { display: flex; justify-content: space-between;
    gap: 1rem; border: 0; padding: 0.1rem 0; white-space: normal; text-align: right; }
  .blocks td::before { content: attr(data-head); color: #555; text-align: left; flex: none;
    max-width: 50%; }
  .blocks tr > :first-child { font-weight: 600; }
  .blocks tr > :first-child::before { content: none; }
  .small th, .small td { padding: 0.25rem 0.3rem; font-size: 0.82rem; }
  .categories th:nth-child(3), .categories td:nth-child(3) { display: none; }
  .categories small { display: block; }
  .bar { width: 28%; min-width: 4rem; }
  figure img.broad { max-width: none; width: 40rem; }
}
</style>
</head>
<body>
<h1>{{ document.title }}</h1>
{% for sheet in document.sheets %}{{ table(sheet) }}{% endfor %}
{% if document.conclusions %}<div class="conclusions">
{% for text in document.conclusions %}<p>{{ text }}</p>{% endfor %}
</div>{% endif %}
<ul>{% for note in document.notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% for picture, source in pictures %}
<figure><div class="wide"><img {% if picture.width > 6 %}class="broad" {% endif %}
src="{{ source }}" alt="{{ picture.caption }}"></div>
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
{% for one in learned %}{{ weights(one) }}{% endfor %}
{% for sheet in document.appendix %}{{ table(sheet) }}{% endfor %}
<h2>How it was made</h2>
<pre>{{ command }}</pre>
<details><summary>Options</summary><pre>{{ config }}</pre></details>
<details><summary>Environment</summary><pre>{{ environment }}</pre></details>
</body>
</html>
"""
