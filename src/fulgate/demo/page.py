"""The looks of the demo: one style sheet, one script, and what all its pages have around them."""

from __future__ import annotations

import base64
import hashlib
from html import escape

__all__ = ["CSP", "SCRIPT", "document_end", "document_start"]

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f5f1; --card: #ffffff; --ink: #1d1c22; --soft: #67646f; --line: #e3e0d8;
  --brand: #4338ca; --brand-ink: #ffffff; --bolt: #f5a524; --well: #f1efe9;
  --script: #7c3aed; --path: #0f7a55; --query: #b4530a; --host: #67646f;
  --good: #0f7a55; --bad: #be123c; --shadow: 0 1px 2px #1d1c2210, 0 6px 24px #1d1c220d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #131318; --card: #1c1c23; --ink: #eceaf2; --soft: #a19eac; --line: #2e2d38;
    --brand: #8f87ff; --brand-ink: #14131a; --bolt: #fbbf4a; --well: #24242d;
    --script: #c4a5ff; --path: #58d3a4; --query: #f7a862; --host: #a19eac;
    --good: #58d3a4; --bad: #ff7e97; --shadow: 0 1px 2px #0006;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans",
  sans-serif; }
code, .mono, td, .url, output, #lines { font-family: ui-monospace, "SF Mono", "Cascadia Mono",
  Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .875em; }
a { color: var(--brand); text-underline-offset: .2em; }
main, header > div, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding: 2.25rem 0 1.75rem; }
header > div { display: flex; gap: 1rem; align-items: center; flex-wrap: wrap; }
header svg { width: 3.25rem; height: 3.25rem; flex: none; }
.gate { fill: none; stroke: var(--brand); stroke-width: 5; stroke-linecap: round; }
.bolt { fill: var(--bolt); }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; letter-spacing: -.02em; }
h1 a { color: inherit; text-decoration: none; }
h1 + p { margin: .15rem 0 0; color: var(--soft); }
.version { margin-left: auto; text-align: right; color: var(--soft); font-size: .875rem; }
.version b { display: block; color: var(--ink); font-size: 1rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  box-shadow: var(--shadow); padding: 1.4rem 1.5rem 1.5rem; margin: 0 0 1.25rem; }
h2 { font-size: 1.15rem; margin: 0 0 .35rem; letter-spacing: -.01em; }
section > p { margin: 0 0 1rem; color: var(--soft); max-width: 46rem; }
.url { background: var(--well); border-radius: 10px; padding: .8rem 1rem; font-size: 1.05rem;
  overflow-wrap: anywhere; line-height: 1.7; }
.host { color: var(--host); } .script { color: var(--script); } .path { color: var(--path); }
.query { color: var(--query); }
.url .script, .url .path, .url .query { font-weight: 600; border-bottom: 3px solid; }
dl.legend { display: grid; grid-template-columns: repeat(3, 1fr); gap: .75rem; margin: 1rem 0; }
dl.legend div { border-left: 3px solid; padding: .05rem 0 .05rem .75rem; min-width: 0; }
dl.legend dt { font-size: .8rem; font-weight: 600; letter-spacing: .02em; }
dl.legend dd { margin: 0; color: var(--ink); overflow-wrap: anywhere; }
.none { color: var(--soft); font-style: italic; font-family: inherit; }
.try { margin: 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .5rem; }
.try a { display: block; padding: .25rem .75rem; border: 1px solid var(--line);
  border-radius: 99px; text-decoration: none; font-size: .875rem; }
.try a:hover { border-color: currentcolor; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 1.25rem; }
.two section { min-width: 0; display: flex; flex-direction: column; }
button, .button { font: inherit; font-weight: 600; border: 1px solid transparent; cursor: pointer;
  border-radius: 9px; padding: .5rem 1rem; background: var(--brand); color: var(--brand-ink);
  text-decoration: none; display: inline-block; }
button.quiet { background: none; border-color: var(--line); color: var(--ink); }
button:hover, .button:hover { filter: brightness(1.1); }
button:disabled, .busy { opacity: .5; pointer-events: none; }
:focus-visible { outline: 3px solid var(--bolt); outline-offset: 2px; }
input[type=file] { font: inherit; font-size: .9rem; width: 100%; padding: .75rem;
  border: 2px dashed var(--line); border-radius: 10px; background: var(--well);
  color: var(--soft); margin: 0 0 .9rem; }
::file-selector-button { font: inherit; font-weight: 600; color: var(--ink); cursor: pointer;
  background: var(--card); border: 1px solid var(--line); border-radius: 7px;
  padding: .3rem .75rem; margin-right: .75rem; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; }
progress { width: 100%; height: .6rem; accent-color: var(--brand); margin: .9rem 0 0; }
.facts { margin: 1rem 0 0; background: var(--well); border-radius: 10px; padding: .8rem 1rem;
  overflow-wrap: anywhere; }
.facts > div { display: grid; grid-template-columns: 6.5rem 1fr; gap: .25rem .75rem; }
.facts > div + div { margin-top: .15rem; }
.facts dt { color: var(--soft); font-size: .875rem; } .facts dd { margin: 0; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
#lines { list-style: none; margin: 1rem 0 0; padding: .8rem 1rem; background: var(--well);
  border-radius: 10px; }
#lines li { display: flex; justify-content: space-between; gap: 1rem; }
#lines li span { color: var(--soft); }
#lines li:last-child { animation: arrive .5s; }
@keyframes arrive { from { color: var(--bolt); } }
@media (prefers-reduced-motion: reduce) { #lines li:last-child { animation: none; } }
[hidden] { display: none !important; }
details + details { border-top: 1px solid var(--line); }
summary { cursor: pointer; padding: .6rem 0; font-weight: 600; }
summary span { color: var(--soft); font-weight: 400; font-size: .875rem; margin-left: .35rem; }
table { width: 100%; border-collapse: collapse; margin: 0 0 1rem; table-layout: fixed; }
th, td { text-align: left; vertical-align: top; padding: .38rem .75rem .38rem 0;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; font-weight: 400; }
th { width: 17rem; color: var(--soft); }
tr:first-child > * { border-top: 0; }
footer { color: var(--soft); font-size: .875rem; padding-bottom: 3rem; }
@media (max-width: 44rem) {
  header { padding: 1.5rem 0 1.25rem; }
  .version { margin-left: 0; text-align: left; width: 100%; }
  .version b { display: inline; }
  .two, dl.legend { grid-template-columns: 1fr; }
  .two { gap: 0; }
  section { padding: 1.15rem 1.1rem 1.25rem; }
  main, header > div, footer { padding-left: 1rem; padding-right: 1rem; }
  th, td { display: block; width: auto; padding: 0; }
  th { padding-top: .5rem; } td { border: 0; padding-bottom: .5rem; }
}
"""

SCRIPT = """
"use strict";
const $ = (id) => document.getElementById(id);
const size = (n) => n.toLocaleString("en") + (n === 1 ? " byte" : " bytes");
const hex = (b) => Array.from(new Uint8Array(b), (x) => x.toString(16).padStart(2, "0")).join("");

function fact(list, name, value, mood) {
  const row = document.createElement("div");
  const dt = document.createElement("dt");
  const dd = document.createElement("dd");
  dt.textContent = name;
  dd.textContent = value;
  if (mood) dd.className = mood;
  dd.classList.add("mono");
  row.append(dt, dd);
  list.append(row);
}

async function local(blob) {
  if (!window.crypto || !crypto.subtle || blob.size > 256 << 20) return null;
  return hex(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer()));
}

function send(url, blob) {
  const out = $("arrived");
  const bar = $("bar");
  const request = new XMLHttpRequest();
  const began = performance.now();
  out.replaceChildren();
  out.hidden = true;
  bar.hidden = false;
  bar.value = 0;
  document.querySelectorAll("#upload button").forEach((b) => { b.disabled = true; });
  request.upload.onprogress = (e) => { if (e.total) bar.value = e.loaded / e.total; };
  request.onloadend = async () => {
    bar.hidden = true;
    out.hidden = false;
    document.querySelectorAll("#upload button").forEach((b) => { b.disabled = false; });
    if (request.status !== 200) {
      const text = request.status ? request.status + " " + request.statusText : "connection lost";
      fact(out, "Failed", text, "bad");
      return;
    }
    const answer = JSON.parse(request.responseText);
    const took = (performance.now() - began) / 1000;
    fact(out, "Arrived", size(answer.bytes), answer.bytes === blob.size ? "good" : "bad");
    fact(out, "SHA-256", answer.sha256);
    const expected = await local(blob);
    if (expected) {
      const same = expected === answer.sha256;
      fact(out, "Compared", same ? "the same as in the browser" : "not what was sent",
        same ? "good" : "bad");
    }
    fact(out, "Took", took.toFixed(2) + " s, in " + answer.pieces + " pieces");
  };
  request.open("POST", url);
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.setRequestHeader("Accept", "application/json");
  request.send(blob);
}

async function stream(url) {
  const lines = $("lines");
  const button = $("start");
  const began = performance.now();
  lines.replaceChildren();
  lines.hidden = false;
  button.classList.add("busy");
  const line = (text, note) => {
    const li = document.createElement("li");
    const span = document.createElement("span");
    li.textContent = text;
    span.textContent = note;
    li.append(span);
    lines.append(li);
  };
  try {
    const answer = await fetch(url, { headers: { Accept: "text/plain" } });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const now = ((performance.now() - began) / 1000).toFixed(2) + " s";
      value.trim().split("\\n").forEach((text) => line(text, now));
    }
  } catch (error) {
    line("broken: " + error.message, "");
  }
  button.classList.remove("busy");
}

const form = $("upload");
if (form) {
  form.addEventListener("submit", (event) => {
    const file = $("file").files[0];
    event.preventDefault();
    if (file) send(form.action, file);
    else $("file").click();
  });
  $("random").hidden = false;
  $("random").addEventListener("click", () => {
    const pieces = [];
    for (let n = 0; n < 128; n += 1) pieces.push(crypto.getRandomValues(new Uint8Array(65536)));
    send(form.action, new Blob(pieces));
  });
  $("start").addEventListener("click", (event) => {
    event.preventDefault();
    stream($("start").href);
  });
}
"""

LOGO = (
    '<svg viewBox="0 0 64 64" aria-hidden="true">'
    '<path class="gate" d="M8 58V30a24 24 0 0 1 48 0v28M4 58h12M48 58h12"/>'
    '<path class="bolt" d="M36 16 20 40h10l-4 18 18-26H33z"/></svg>'
)
ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 64 64'>"
    "<path d='M8 58V30a24 24 0 0 1 48 0v28' fill='none' stroke='#6d64f0' stroke-width='6'/>"
    "<path d='M36 16 20 40h10l-4 18 18-26H33z' fill='#f5a524'/></svg>"
)


def _source(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


# Whatever a request may contain: nothing but our own style and script is run.
CSP = (
    f"default-src 'none'; style-src {_source(STYLE)}; script-src {_source(SCRIPT)};"
    " img-src data:; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)


def document_start(title: str, home: str, version: str, software: str) -> str:
    """Give all that is before a page's own content. The arguments are plain text."""
    icon = "data:image/svg+xml;base64," + base64.b64encode(ICON.encode()).decode()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="{icon}">
<style>{STYLE}</style>
</head>
<body>
<header><div>
{LOGO}
<div><h1><a href="{escape(home)}">Fulgate</a></h1><p>This page came over FastCGI.</p></div>
<div class="version"><b>Fulgate {escape(version)}</b> {escape(software)}</div>
</div></header>
<main>
"""


def document_end(script: bool = False) -> str:
    """Give all that is behind a page's own content."""
    code = f"<script>{SCRIPT}</script>" if script else ""
    return f"""</main>
<footer>Everything here is what the server told the application, and nothing else.
Replace it with your own: <code>make serve APP=module:attr</code></footer>
{code}
</body>
</html>
"""
