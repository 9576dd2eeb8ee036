"use strict";
// Everything in `data` is foreign: names, labels and texts become text nodes, numbers are checked before they are drawn.
const runs = JSON.parse(document.getElementById("data").textContent);
const COLOURS = 8;
const FAILURES = { hop_failed: "failed hops", relay_failed: "failed relays", outpaced: "outpaced servers", untrue_result: "servers found untrue", disagreement: "disagreements", waiting: "waits" };
const $ = id => document.getElementById(id);
const isNumber = x => typeof x === "number" && Number.isFinite(x);
const list = x => Array.isArray(x) ? x : [];
const object = x => x !== null && typeof x === "object" && !Array.isArray(x) ? x : {};
const colour = at => `var(--c${at % COLOURS})`;
const dash = at => ["", "7 3", "2 3"][Math.floor(at / COLOURS) % 3];
const short = peer => "…" + String(peer).slice(-6);

function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "style") Object.assign(element.style, value); else element[key] = value;
  }
  element.append(...children.map(child => child instanceof Node ? child : document.createTextNode(String(child))));
  return element;
}

function draw(parent, name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

const swatch = at => make("span", { className: "swatch", style: { background: colour(at) } });
const units = (value, names, base) => {
  let at = 0;
  while (Math.abs(value) >= base && at < names.length - 1) { value /= base; at++; }
  return `${Number(value.toPrecision(3))}${names[at]}`;
};
const number = value => {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
};
const bytes = value => !isNumber(value) ? "–" : Math.abs(value) < 1000 ? `${Math.round(value)} B` : units(value / 1000, [" kB", " MB", " GB", " TB", " PB"], 1000);
const percent = value => isNumber(value) ? `${(value * 100).toFixed(1)} %` : "–";
const seconds = value => {
  if (!isNumber(value)) return "–";
  const [over, unit] = value < 100 ? [1, "s"] : value < 6000 ? [60, "min"] : [3600, "h"];
  return `${(value / over).toFixed(1)} ${unit}`;
};

runs.forEach(run => {
  run.shown = true;
  run.evals = list(run.evals).map(object).filter(e => isNumber(e.step));
  run.began = object(run.began);
});
const evalSeries = (run, field) => run.evals.filter(e => isNumber(e[field])).map(e => [e.step, e[field]]);
const figure = (run, name) => list(object(run.figures)[name]);
const failures = run => Object.entries(object(run.failures));
const failed = run => failures(run).reduce((sum, [, steps]) => sum + (steps.length ? steps[steps.length - 1][1] : 0), 0);
function allFailures(run) {
  // By kind a rising count; together their sum.
  const now = {}, points = [];
  for (const [step, kind, count] of failures(run).flatMap(([kind, steps]) => steps.map(([step, count]) => [step, kind, count])).sort((a, b) => a[0] - b[0])) {
    now[kind] = count;
    points.push([step, Object.values(now).reduce((a, b) => a + b, 0)]);
  }
  if (figure(run, "loss").length) { points.unshift([figure(run, "loss")[0][0], 0]); points.push([run.last_step, failed(run)]); }
  return points;
}
function smoothed(points, weight) {
  // A running mean that does not start at zero (as Adam corrects its own).
  let mean = 0, sum = 0;
  return points.map(([x, y]) => { mean = weight * mean + (1 - weight) * y; sum = weight * sum + 1 - weight; return [x, mean / sum]; });
}

const CHARTS = [
  { title: "Training loss", of: run => [{ points: figure(run, "loss"), smooth: true }], loss: true },
  { title: "Held-out loss", of: run => [{ points: evalSeries(run, "loss"), dots: true }], loss: true },
  { title: "Accuracy", of: run => [{ points: evalSeries(run, "accuracy"), dots: true }], format: percent },
  { title: "Macro-F1", of: run => [{ points: evalSeries(run, "macro_f1"), dots: true }], format: percent },
  { title: "Perplexity", of: run => [{ points: evalSeries(run, "perplexity"), dots: true }], loss: true },
  { title: "Learning rate", of: run => [{ points: figure(run, "lr") }], zero: true },
  { title: "Norm of the gradients", of: run => [{ points: figure(run, "grad_norm"), smooth: true }], loss: true },
  { title: "Tokens a second", of: run => [{ points: figure(run, "tokens_per_s"), smooth: true }], zero: true },
  { title: "Bytes a step: sent (line) and received (dashes)", format: bytes, zero: true,
    of: run => [{ points: figure(run, "sent"), name: "sent" }, { points: figure(run, "received"), name: "received", dash: "5 4" }] },
  { title: "Failures and waits so far", of: run => [{ points: allFailures(run), steps: true }], zero: true,
    hidden: () => runs.every(run => failed(run) === 0) },
];

function ticks(low, high, most) {
  const raw = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(n => n * power).find(n => n >= raw) ?? raw;
  const all = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9 && all.length < 50; at++) all.push(at * step);
  return all;
}

function tick(svg, x, width, y, step) {
  const atTheEnd = x > width - 22;
  draw(svg, "text", { x: atTheEnd ? width : x, y, "text-anchor": atTheEnd ? "end" : "middle" }, number(step));
}

function logTicks(low, high) {
  const decades = ticks(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)), 8).filter(Number.isInteger);
  const of = parts => decades.flatMap(decade => parts.map(part => part * 10 ** decade)).filter(t => t >= low && t <= high);
  return [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]].map(of).find((labels, at) => labels.length >= 3 || at === 3);
}

function chart(definition, card) {
  const log = definition.loss && $("log").checked, format = definition.format ?? number;
  const weight = Number($("smooth").value);
  const lines = [];
  runs.forEach((run, at) => {
    if (!run.shown) return;
    for (const series of definition.of(run)) {
      const points = series.points.filter(([x, y]) => isNumber(x) && isNumber(y) && (!log || y > 0));
      if (points.length) lines.push({ ...series, at, raw: points, points: series.smooth && weight > 0 ? smoothed(points, weight) : points });
    }
  });
  card.querySelector("svg")?.remove();
  card.querySelector(".tip")?.remove();
  card.hidden = lines.length === 0 && runs.every(run => definition.of(run).every(series => series.points.length === 0));
  if (lines.length === 0) return;
  const width = Math.max(card.clientWidth - 26, 240), height = 230, left = 58, right = 12, top = 8, bottom = 24;
  const xs = lines.flatMap(line => [line.points[0][0], line.points[line.points.length - 1][0]]);
  let [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  if (x0 === x1) { x0 -= 1; x1 += 1; }
  // A few wild first steps would flatten the rest: the smoothed line decides, and the faint one may leave the chart.
  let y0 = Infinity, y1 = -Infinity;
  for (const line of lines) for (const [, y] of line.points) { y0 = Math.min(y0, y); y1 = Math.max(y1, y); }
  if (definition.zero) y0 = Math.min(y0, 0);
  const scale = log ? Math.log10 : y => y;
  let [low, high] = [scale(y0), scale(y1)];
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  if (!(definition.zero && y0 === 0)) low -= margin;
  high += margin;
  const px = x => left + (x - x0) / (x1 - x0) * (width - left - right);
  const py = y => top + (high - scale(y)) / (high - low) * (height - top - bottom);
  const svg = draw(card, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": definition.title });
  const clip = `clip${CHARTS.indexOf(definition)}`;
  draw(draw(svg, "clipPath", { id: clip }), "rect", { x: left, y: top - 2, width: width - left - right, height: height - top - bottom + 4 });
  const labels = log ? logTicks(10 ** low, 10 ** high) : ticks(low, high, 5);
  for (const label of labels) {
    draw(svg, "line", { class: "grid", x1: left, x2: width - right, y1: py(label), y2: py(label) });
    draw(svg, "text", { x: left - 6, y: py(label) + 4, "text-anchor": "end" }, format(label));
  }
  for (const label of ticks(x0, x1, Math.min(6, width / 80)).filter(Number.isInteger)) {
    tick(svg, px(label), width, height - 6, label);
  }
  draw(svg, "line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom });
  const inside = draw(svg, "g", { "clip-path": `url(#${clip})` });
  const path = (line, points) => points.map(([x, y], i) =>
    i === 0 ? `M${px(x)} ${py(y)}` : line.steps ? `H${px(x)}V${py(y)}` : `L${px(x)} ${py(y)}`).join("");
  for (const line of lines) {
    const look = { class: "mark", stroke: colour(line.at), "stroke-dasharray": line.dash ?? dash(line.at) };
    if (line.points !== line.raw) draw(inside, "path", { ...look, class: "mark faint", d: path(line, line.raw) });
    draw(inside, "path", { ...look, d: path(line, line.points) });
    if (line.points.length === 1 || (line.dots && line.points.length <= 60)) {
      for (const [x, y] of line.points) draw(inside, "circle", { cx: px(x), cy: py(y), r: 3, fill: colour(line.at) });
    }
  }
  runs.forEach((run, at) => {
    for (const step of run.shown ? list(run.resumed) : []) {
      if (isNumber(step)) draw(draw(inside, "line", { class: "resumed", stroke: colour(at), x1: px(step), x2: px(step), y1: top, y2: height - bottom }), "title", {}, `${run.name}: gone on behind step ${step}`);
    }
  });
  const cursor = draw(svg, "line", { class: "axis", y1: top, y2: height - bottom, visibility: "hidden" });
  const tip = make("div", { className: "tip", hidden: true });
  card.append(tip);
  svg.onpointermove = event => {
    const box = svg.getBoundingClientRect(), x = x0 + ((event.clientX - box.left) / box.width * width - left) / (width - left - right) * (x1 - x0);
    const nearest = line => line.raw.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
    const step = nearest(lines.reduce((a, b) => Math.abs(nearest(b)[0] - x) < Math.abs(nearest(a)[0] - x) ? b : a))[0];
    for (const [key, value] of Object.entries({ x1: px(step), x2: px(step), visibility: "visible" })) cursor.setAttribute(key, value);
    tip.replaceChildren(make("div", {}, `step ${number(step)}`), ...lines.map(line => {
      const point = nearest(line), other = point[0] === step ? "" : ` (step ${number(point[0])})`;
      return make("div", {}, swatch(line.at), runs[line.at].name + (line.name ? `, ${line.name}` : "") + other, make("b", {}, format(point[1])));
    }));
    tip.hidden = false;
    const at = (px(step) / width) * box.width;
    Object.assign(tip.style, { top: "2.2rem", left: at < box.width / 2 ? `${at + 24}px` : "", right: at < box.width / 2 ? "" : `${box.width - at + 24}px` });
  };
  svg.onpointerleave = () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); };
}

function fill(table, head, rows) {
  const body = make("tbody");
  for (const row of rows) {
    body.append(make("tr", {}, ...row.map((cell, at) => cell instanceof Node ? cell : make(at === 0 ? "th" : "td", {}, cell))));
  }
  table.replaceChildren(make("thead", {}, make("tr", {}, ...head.map(cell => make("th", {}, cell)))), body);
}
const named = at => make("th", {}, swatch(at), " ", runs[at].name);

function scores() {
  const last = points => points.length ? points[points.length - 1][1] : undefined;
  const median = points => { const sorted = points.map(p => p[1]).sort((a, b) => a - b); return sorted[Math.floor(sorted.length / 2)]; };
  const columns = [
    ["steps", run => run.last_step, number],
    ["training loss", run => last(smoothed(figure(run, "loss"), 0.8)), number, -1],
    ["held-out loss", run => last(evalSeries(run, "loss")), number, -1],
    ["lowest", run => Math.min(...evalSeries(run, "loss").map(e => e[1])), number, -1],
    ["at step", run => evalSeries(run, "loss").reduce((a, b) => b[1] < a[1] ? b : a, [undefined, Infinity])[0], number],
    ["accuracy", run => last(evalSeries(run, "accuracy")), percent, 1],
    ["macro-F1", run => last(evalSeries(run, "macro_f1")), percent, 1],
    ["perplexity", run => last(evalSeries(run, "perplexity")), number, -1],
    ["trained values", run => run.began.parameters, number],
    ["tokens/s", run => median(figure(run, "tokens_per_s")), number, 1],
    ["sent", run => list(run.bytes)[0], bytes],
    ["received", run => list(run.bytes)[1], bytes],
    ["time", run => Array.isArray(run.time) ? run.time[1] - run.time[0] : undefined, seconds],
    ["failures", run => failed(run), number],
  ].filter(([, of]) => runs.some(run => isNumber(of(run))));
  const rows = runs.map((run, at) => [named(at), ...columns.map(([, of, format, better]) => {
    const value = of(run), all = runs.map(of).filter(isNumber).map(x => x * (better ?? 0));
    const best = better && runs.length > 1 && isNumber(value) && value * better === Math.max(...all);
    return make("td", { className: best ? "best" : "" }, format(value));
  })]);
  fill($("scores"), ["run", ...columns.map(c => c[0])], rows);
  $("remarks").textContent = runs.flatMap(run => [
    list(run.resumed).length ? `${run.name} was gone on with behind ${run.resumed.map(step => `step ${step}`).join(", ")} (broken lines in the charts).` : "",
    run.thinned > 1 ? `Each point of ${run.name} is the mean of ${run.thinned} steps.` : "",
    run.unknown > 0 ? `${run.unknown} lines of ${run.name} were nothing that this program knows, and are left out.` : "",
  ]).filter(Boolean).join("\n");
}

function settings() {
  const text = value => typeof value === "string" ? value : value === undefined ? "–" : JSON.stringify(value);
  const of = run => {
    const { settings = {}, model, version, data, eval: heldOut } = run.began;
    const file = (f, name) => f && `${name ?? object(f).file}, ${number(object(f).examples)} examples`;
    // What is said of the files has their flags in it.
    const { "--data": digested, "--eval": _, ...flags } = object(settings);
    return Object.fromEntries(Object.entries({ model, data: file(data, digested), "held-out data": file(heldOut), ...flags, "petals-tune": version }).filter(([, value]) => value !== undefined && value !== null));
  };
  const all = runs.map(of), flags = [...new Set(all.flatMap(Object.keys))];
  const row = flag => [flag, ...all.map(one => make("td", { className: "text" }, text(Object.hasOwn(one, flag) ? one[flag] : undefined)))];
  const head = () => ["", ...runs.map((run, at) => make("span", {}, swatch(at), " ", run.name))];
  const differing = flags.filter(flag => new Set(all.map(one => text(Object.hasOwn(one, flag) ? one[flag] : undefined))).size > 1);
  if (differing.length) fill($("differing"), head(), differing.map(row));
  else $("differing").replaceChildren(make("tbody", {}, make("tr", {}, make("td", { className: "text" },
    runs.length === 1 ? "One run, so nothing differs." : flags.length ? "Nothing differs." : "These runs did not write down their settings: they were made by an earlier version."))));
  if (flags.length) fill($("settings"), head(), flags.map(row));
}

function lanes() {
  for (const card of document.querySelectorAll("#routes .card")) card.remove();
  $("routes").hidden = runs.every(run => list(run.lanes).length === 0);
  runs.forEach((run, at) => {
    const all = list(run.lanes).map(object).filter(lane => list(lane.parts).length);
    if (!run.shown || all.length === 0) return;
    const card = make("div", { className: "card lanes" }, make("h3", {}, swatch(at), " ", run.name));
    $("routes").append(card);
    const high = 22, left = 132, width = Math.max(card.clientWidth - 26, 240), height = all.length * high + 24;
    const svg = draw(card, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Routes of ${run.name}` });
    const x0 = Math.min(...all.flatMap(lane => lane.parts.map(part => part[0]))), x1 = Math.max(run.last_step, x0) + 1;
    const px = x => left + (x - x0) / (x1 - x0) * (width - left - 8);
    all.forEach((lane, row) => {
      const y = row * high, title = `${lane.peer}, blocks ${list(lane.blocks).join("..")}`;
      draw(draw(svg, "text", { x: left - 8, y: y + 15, "text-anchor": "end" }, `${short(lane.peer)}  ${list(lane.blocks).join("..")}`), "title", {}, title);
      draw(svg, "line", { class: "grid", x1: left, x2: width - 8, y1: y + 11, y2: y + 11 });
      for (const [from, to, share] of lane.parts) {
        const cell = draw(svg, "rect", { x: px(from), y: y + 2, width: Math.max(px(to + 1) - px(from), 1), height: high - 4, fill: colour(at), opacity: 0.2 + 0.8 * Math.min(Math.max(share, 0), 1) });
        draw(cell, "title", {}, `${title}\nsteps ${from} to ${to}: ${percent(share)} of the micro-batches`);
      }
      for (const event of list(run.failed).map(object).filter(e => e.peer === lane.peer && e.blocks === list(lane.blocks).join(".."))) {
        if (!isNumber(event.step)) continue;
        const x = px(event.step + 0.5), d = `M${x - 4} ${y + 7}l8 8m0-8l-8 8`;
        draw(svg, "path", { class: "cross halo", d });
        draw(draw(svg, "path", { class: "cross", d }), "title", {}, `step ${event.step}: ${FAILURES[event.event] ?? "failure"}, ${event.reason ?? ""}`);
      }
    });
    for (const label of ticks(x0, x1 - 1, Math.min(8, width / 90)).filter(Number.isInteger)) {
      tick(svg, px(label + 0.5), width, height - 6, label);
    }
    if (run.more_lanes > 0) card.append(make("p", {}, `and ${run.more_lanes} more that did less`));
  });
}

function confusions() {
  const box = document.querySelector("#classes .beside");
  box.replaceChildren();
  runs.forEach((run, at) => {
    const { labels, matrix } = object(run.confusion);
    if (!run.shown || !Array.isArray(labels) || !Array.isArray(matrix) || labels.length > 60) return;
    const largest = row => Math.max(1, list(row).reduce((sum, n) => sum + (isNumber(n) ? n : 0), 0));
    const table = make("table", { className: "confusion" });
    fill(table, ["", ...labels.map(String)], labels.map((label, row) => [String(label), ...list(matrix[row]).map(times => {
      const share = isNumber(times) ? times / largest(matrix[row]) : 0;
      return make("td", { title: percent(share), style: { background: `color-mix(in srgb, ${colour(at)} ${Math.round(share * 55)}%, transparent)` } }, times);
    })]));
    box.append(make("div", { className: "card" }, make("h3", {}, swatch(at), " ", run.name), make("div", { className: "wide" }, table)));
  });
  $("classes").hidden = box.childElementCount === 0;
}

function samples() {
  for (const card of document.querySelectorAll("#samples .card")) card.remove();
  runs.forEach((run, at) => {
    const { step, samples } = object(run.samples);
    if (!run.shown || !Array.isArray(samples)) return;
    const card = make("div", { className: "card lanes" }, make("h3", {}, swatch(at), ` ${run.name}, after step ${step}`));
    for (const sample of samples.map(object)) {
      card.append(make("div", { className: "sample" }, make("p", { className: "soft" }, sample.prompt ?? ""),
        make("p", { className: "new" }, (sample.generated ?? "") + (sample.finish === "length" ? "…" : "")),
        make("details", {}, make("summary", {}, "as the data has it"), make("p", {}, sample.expected ?? ""))));
    }
    $("samples").append(card);
  });
  $("samples").hidden = !document.querySelector("#samples .card");
}

function events() {
  const rows = runs.flatMap((run, at) => list(run.failed).map(object).map(e => [named(at), number(e.step), FAILURES[e.event] ?? String(e.event),
    e.peer === undefined ? "" : short(e.peer), e.blocks ?? "", make("td", { className: "text" }, e.reason ?? (e.by ? `${short(e.by)} answered instead` : ""))]));
  $("events").hidden = rows.length === 0;
  fill(document.querySelector("#events table"), ["run", "step", "what", "server", "blocks", "why"], rows);
}

const cards = CHARTS.map(definition => {
  const card = make("div", { className: "card" }, make("h3", {}, definition.title));
  $("charts").append(card);
  return card;
});
function drawAll() {
  CHARTS.forEach((definition, at) => {
    if (definition.hidden?.()) cards[at].hidden = true; else { cards[at].hidden = false; chart(definition, cards[at]); }
  });
  lanes();
}
function everything() { drawAll(); confusions(); samples(); }
runs.forEach((run, at) => {
  const button = make("button", { type: "button", onclick: () => {
    run.shown = !run.shown;
    button.setAttribute("aria-pressed", run.shown);
    everything();
  } }, swatch(at), run.name);
  button.setAttribute("aria-pressed", "true");
  $("legend").append(make("li", {}, button));
});
document.title = runs.length === 1 ? runs[0].name : `${runs.length} training runs`;
$("smooth").oninput = $("log").onchange = drawAll;
$("theme").onclick = () => {
  const dark = document.documentElement.classList.contains("dark") || (!document.documentElement.classList.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.className = dark ? "light" : "dark";
};
let width = 0;
new ResizeObserver(() => { if (innerWidth !== width) { width = innerWidth; requestAnimationFrame(drawAll); } }).observe(document.body);
scores(); settings(); events(); everything();
