// Run explorer. Python sends what runs recorded, again while they are training; everything else happens here.

const HEIGHT = 300, MARGIN = { left: 58, top: 12, right: 16, bottom: 42 };
const STATES = { done: "done", running: "running", stopped: "not finished", waiting: "not started" };

// ---------------------------------------------------------------------- curves

/** Curves of a metric, by run id: {steps, values}, NaN removed. */
function curvesOf(curves, metric) {
  const out = new Map();
  for (const [id, tables] of Object.entries(curves)) {
    for (const { names, steps, values } of tables) {
      const column = names.indexOf(metric);
      if (column < 0) continue;
      const x = typed(steps, Int32Array), all = typed(values, Float32Array).subarray(column * x.length, (column + 1) * x.length);
      const keep = Array.from(x.keys()).filter((i) => !Number.isNaN(all[i]));
      if (keep.length) out.set(id, { steps: keep.map((i) => x[i]), values: keep.map((i) => all[i]) });
    }
  }
  return out;
}

/** Centred running mean over `width` steps; the ends take what there is. */
function smooth({ steps, values }, width) {
  if (width <= 1) return { steps, values };
  const reach = Math.floor(width / 2), sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  let from = 0, to = 0;
  return { steps, values: steps.map((step) => {
    while (steps[from] < step - reach) from += 1;
    while (to < steps.length && steps[to] <= step + reach) to += 1;
    return (sums[to] - sums[from]) / (to - from);
  }) };
}

/** Mean, lowest and highest over seeds, at the steps that as many seeds recorded as ever did. */
function overSeeds(curves) {
  const at = new Map();
  for (const { steps, values } of curves) steps.forEach((step, i) => { if (!at.has(step)) at.set(step, []); at.get(step).push(values[i]); });
  const most = Math.max(0, ...[...at.values()].map((list) => list.length));
  const steps = [...at.keys()].filter((step) => at.get(step).length === most).sort((a, b) => a - b);
  return {
    seeds: most, steps,
    mean: steps.map((step) => at.get(step).reduce((a, b) => a + b, 0) / most),
    low: steps.map((step) => Math.min(...at.get(step))), high: steps.map((step) => Math.max(...at.get(step))),
  };
}

/** Index of the last step at or before `step`; -1 if there is none. */
function before(steps, step) {
  let low = 0, high = steps.length;
  while (low < high) { const middle = (low + high) >> 1; if (steps[middle] <= step) low = middle + 1; else high = middle; }
  return low - 1;
}

function marker(context, shape, x, y, size) {
  const point = (angle) => [x + size * Math.cos(angle), y + size * Math.sin(angle)];
  const polygon = (count, turn) => Array.from({ length: count }, (_, i) => point(turn + (2 * Math.PI * i) / count));
  context.beginPath();
  if (shape === "o") context.arc(x, y, size, 0, 2 * Math.PI);
  else if ("xP*".includes(shape)) {
    for (const angle of shape === "x" ? [0.25, 0.75] : shape === "P" ? [0, 0.5] : [0, 1 / 3, 2 / 3]) {
      const [ax, ay] = point(angle * Math.PI), [bx, by] = point((angle + 1) * Math.PI);
      context.moveTo(ax, ay); context.lineTo(bx, by);
    }
    context.lineWidth = 2;
    context.stroke();
    return;
  } else {
    const [count, turn] = { s: [4, Math.PI / 4], D: [4, 0], "^": [3, -Math.PI / 2], v: [3, Math.PI / 2], "<": [3, Math.PI], ">": [3, 0], p: [5, -Math.PI / 2], h: [6, 0], X: [4, 0] }[shape] ?? [6, 0];
    polygon(count, turn).forEach(([px, py], i) => (i ? context.lineTo(px, py) : context.moveTo(px, py)));
  }
  context.closePath();
  context.fill();
}

// ---------------------------------------------------------------------- view

function render({ model, el }) {
  const send = sender(model);
  let theme = null, themed = true, lit = null, cache = { key: null }, tableFor = "", samples = [];
  const view = explorer({ model, el, title: "Runs", label: "Run explorer", changed: () => { themed = true; ask(); } });
  const { root } = view;
  const ask = painter(root, () => paint());
  const set = (values) => { send(values); ask(); };

  const metric = selectField({ label: "Metric", onchange: (value) => set({ metric: value }) });
  const width = rangeField({ label: "Running mean", min: 1, max: 51, step: 2, oninput: (value) => set({ smoothing: value }) });
  const step = rangeField({ label: "Training step", min: 0, max: 1, oninput: (value) => set({ step: value }) });
  const chart = drawing({ label: "", height: HEIGHT });
  const still = layer(HEIGHT);
  const meaning = node("p", { class: "note" });
  const readout = node("p", { class: "readout" });
  const status = node("p", { class: "note", role: "status" });
  const note = node("p", { class: "warning", role: "status" });
  const body = node("tbody"), headRow = node("tr");
  const table = node("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of runs" },
    node("table", {}, node("caption", {}, "Runs; only config fields that differ are shown"), node("thead", {}, headRow), body));
  root.append(node("div", { class: "bar" }, metric.element, width.element), meaning, node("div", { class: "stack" }, still.canvas, chart.canvas), node("div", { class: "bar" }, step.element), readout, note, table, status);

  drag(chart.canvas, {
    start: () => cache.last > 0,
    move(px) {
      const share = (px - MARGIN.left) / (chart.canvas.clientWidth - MARGIN.left - MARGIN.right);
      set({ step: Math.round(Math.min(Math.max(share, 0), 1) * cache.last) });
    },
  });

  /** Everything that the step does not move; computed again when data, metric, smoothing or selection change. */
  function prepare() {
    const runs = model.get("runs"), hidden = new Set(model.get("hidden")), name = model.get("metric"), size = model.get("smoothing");
    const key = [runs, model.get("curves"), name, size, model.get("hidden")];
    if (cache.key && key.every((part, i) => part === cache.key[i])) return;
    const raw = curvesOf(model.get("curves"), name), smoothed = new Map([...raw].map(([id, curve]) => [id, smooth(curve, size)]));
    const groups = [];
    for (const run of runs) {
      if (hidden.has(run.id) || !raw.has(run.id)) continue;
      let group = groups.find((one) => one.name === run.group);
      if (!group) groups.push(group = { name: run.group, colour: run.colour, marker: run.marker, runs: [] });
      group.runs.push(run);
    }
    for (const group of groups) {
      group.curve = overSeeds(group.runs.map((run) => smoothed.get(run.id)));
      group.raw = overSeeds(group.runs.map((run) => raw.get(run.id)));
    }
    // For the shown range single extremes of raw curves do not count, what is drawn in full does.
    const values = groups.flatMap(({ curve }) => [...curve.low, ...curve.high]).filter(Number.isFinite);
    let low = Math.min(...values), high = Math.max(...values);
    if (!values.length) [low, high] = [0, 1];
    if (low >= 0 && low < 0.35 * high) low = 0;
    if (high === low) { high += Math.abs(high) * 0.1 || 1; low -= low > 0 ? 0 : 0; }
    const pad = 0.04 * (high - low);
    const last = Math.max(1, ...[...raw.values()].map((curve) => curve.steps[curve.steps.length - 1]));
    cache = { key, groups, raw, smoothed, low: low === 0 ? 0 : low - pad, high: high + pad, last, still: null };
  }

  const colourOf = (colour) => (theme.dark && luminance(colour) < 0.16 ? rgb(mix(channels(colour), [255, 255, 255], 0.45)) : colour);

  function paintStill(box, x, y) {
    const key = `${box.right} ${lit} ${devicePixelRatio} ${theme.dark}`;
    if (cache.still === key) return;
    cache.still = key;
    still.canvas.width = chart.canvas.width;
    still.canvas.height = chart.canvas.height;
    const { context } = still, ratio = devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const known = model.get("metrics").find(({ name }) => name === model.get("metric"));
    axes(context, theme, box, { x, y, xTicks: ticks(0, cache.last, 8), yTicks: ticks(cache.low, cache.high, 5), xName: "training step (of all stages)", yName: known?.title ?? model.get("metric") });
    context.save();
    context.beginPath(); context.rect(box.left - 6, box.top - 4, box.right - box.left + 14, box.bottom - box.top + 5); context.clip();
    const zip = (steps, values) => steps.map((s, i) => [x(s), y(values[i])]);
    const litRun = model.get("runs").find((run) => run.id === lit);
    for (const group of cache.groups) {
      const { steps, mean, low, high, seeds } = group.curve, colour = colourOf(group.colour);
      if (litRun && litRun.group !== group.name) context.globalAlpha = 0.25;
      if (seeds > 1) {
        const outline = [...zip(steps, high), ...zip(steps, low).reverse()];
        context.beginPath();
        outline.forEach(([px, py], i) => (i ? context.lineTo(px, py) : context.moveTo(px, py)));
        context.closePath();
        const alpha = context.globalAlpha;
        context.globalAlpha = alpha * 0.2; context.fillStyle = colour; context.fill();
        context.globalAlpha = alpha;
      }
      if (model.get("smoothing") > 1) { const alpha = context.globalAlpha; context.globalAlpha = alpha * 0.3; line(context, zip(group.raw.steps, group.raw.mean), { colour, width: 0.8 }); context.globalAlpha = alpha; }
      line(context, zip(steps, mean), { colour, width: 2 });
      context.fillStyle = context.strokeStyle = colour;
      const every = Math.max(Math.ceil(steps.length / 9), 1);
      for (let i = Math.floor(every / 2); i < steps.length; i += every) marker(context, group.marker, x(steps[i]), y(mean[i]), 4);
      context.globalAlpha = 1;
    }
    const own = lit && cache.smoothed.get(lit);
    if (own && litRun) line(context, zip(own.steps, own.values), { colour: colourOf(litRun.colour), width: 3.5 });
    context.restore();
    if (!cache.groups.length) {
      context.fillStyle = theme.muted; context.textAlign = "center"; context.textBaseline = "middle"; context.font = `13px ${theme.ui}`;
      context.fillText(model.get("runs").length ? `No shown run has recorded ${model.get("metric")} yet.` : "No run yet: this view fills when one starts.", (box.left + box.right) / 2, (box.top + box.bottom) / 2);
    }
  }

  // ---------------------------------------------------------------- table

  const cells = (run, at) => {
    const curve = cache.smoothed.get(run.id), i = curve ? before(curve.steps, at) : -1;
    return {
      run: run.group, seed: run.seed, progress: run.steps / Math.max(run.total, 1), value: i >= 0 ? curve.values[i] : NaN,
      last: curve ? curve.values[curve.values.length - 1] : NaN, ...run.fields,
    };
  };
  function compare(a, b) {
    const missing = (value) => value === undefined || value === null || Number.isNaN(value);
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  }
  function paintTable(at) {
    const runs = model.get("runs"), fields = model.get("fields"), [by, direction] = model.get("sort"), hidden = new Set(model.get("hidden"));
    const columns = [["run", "run"], ["seed", "seed"], ...fields.map((field) => [field, field]), ["progress", "progress"], ["value", "at step"], ["last", "last"]];
    const rows = runs.map((run) => ({ run, cells: cells(run, at) }));
    rows.sort((a, b) => {
      const [x, y] = [a.cells[by], b.cells[by]], order = compare(x, y);
      // What is missing stays last in either direction.
      return Number.isNaN(x) || Number.isNaN(y) || x === undefined || y === undefined ? order : direction * order;
    });
    const layout = JSON.stringify([columns, rows.map(({ run }) => run.id), by, direction]);
    if (layout !== tableFor) {
      tableFor = layout;
      const focus = document.activeElement?.dataset?.key;
      headRow.replaceChildren(node("th", { scope: "col" }, node("span", { class: "hidden-text" }, "shown")), ...columns.map(([key, title]) => {
        const sorted = key === by;
        const th = node("th", { scope: "col", "aria-sort": sorted ? (direction > 0 ? "ascending" : "descending") : "none" },
          node("button", { type: "button", "data-key": key, onclick: () => set({ sort: [key, sorted ? -direction : 1] }) }, title,
            node("span", { "aria-hidden": "true" }, sorted ? (direction > 0 ? " ▲" : " ▼") : "")));
        return th;
      }));
      samples = [];
      body.replaceChildren(...rows.map(({ run }) => {
        const sample = node("canvas", { class: "sample", width: 56, height: 24, "aria-hidden": "true" });
        samples.push([sample, run]);
        const box = node("input", { type: "checkbox", "data-key": `show ${run.id}`, "aria-label": `Show ${run.group}, seed ${run.seed}`, onchange: () => {
          const now = new Set(model.get("hidden"));
          if (box.checked) now.delete(run.id); else now.add(run.id);
          set({ hidden: [...now] });
        } });
        const light = (id) => () => { if (lit !== id) { lit = id; ask(); } };
        return node("tr", { "data-id": run.id, onpointerenter: light(run.id), onpointerleave: light(null), onfocusin: light(run.id), onfocusout: light(null) },
          node("td", {}, box), node("th", { scope: "row" }, sample, node("span")), ...columns.slice(1).map(([key]) => node("td", { "data-column": key })));
      }));
      if (focus) root.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus();
      themed = true;
    }
    rows.forEach(({ run, cells: own }, i) => {
      const tr = body.children[i];
      tr.firstChild.firstChild.checked = !hidden.has(run.id);
      tr.classList.toggle("off", hidden.has(run.id));
      setText(tr.children[1].lastChild, run.group);
      columns.slice(1).forEach(([key], j) => {
        const cell = tr.children[j + 2], value = own[key];
        const text = key === "progress" ? `${run.steps} / ${run.total} · ${STATES[run.state] ?? run.state}` : typeof value === "number" ? number(value) : value ?? "—";
        setText(cell, text);
        if (text.length > 24) cell.title = text;
      });
    });
    if (themed) {
      for (const [sample, run] of samples) {
        const pen = sample.getContext("2d");
        pen.clearRect(0, 0, 56, 24);
        line(pen, [[0, 12], [56, 12]], { colour: colourOf(run.colour), width: 4 });
        pen.fillStyle = pen.strokeStyle = colourOf(run.colour);
        marker(pen, run.marker, 28, 12, 9);
      }
    }
  }

  // ---------------------------------------------------------------- painting

  function paint() {
    if (themed) theme = palette(root);
    prepare();
    if (themed) cache.still = null;
    const runs = model.get("runs"), metrics = model.get("metrics"), name = model.get("metric");
    const of = (source) => metrics.filter((one) => one.source === source).map((one) => [one.name, one.title]);
    const options = { "recorded every step": of("metrics"), "validation split": of("evaluations") };
    if (!metrics.some((one) => one.name === name)) options["not recorded yet"] = [[name, name]];
    metric.options(Object.fromEntries(Object.entries(options).filter(([, pairs]) => pairs.length)));
    metric.show(name);
    setText(meaning, `${metrics.find((one) => one.name === name)?.meaning ?? name}. Line: mean over seeds; band: from the lowest to the highest seed${model.get("smoothing") > 1 ? "; faint: without running mean" : ""}.`);
    width.show(model.get("smoothing"), model.get("smoothing") > 1 ? `${model.get("smoothing")} steps` : "off");
    step.input.max = cache.last;
    const at = model.get("step") < 0 ? cache.last : Math.min(model.get("step"), cache.last);
    const { width: wide } = chart.begin(), box = { left: MARGIN.left, top: MARGIN.top, right: wide - MARGIN.right, bottom: HEIGHT - MARGIN.bottom };
    const x = (s) => box.left + ((box.right - box.left) * s) / cache.last, y = (v) => box.bottom - ((box.bottom - box.top) * (v - cache.low)) / (cache.high - cache.low);
    paintStill(box, x, y);
    const { context } = chart;
    const parts = [];
    if (cache.groups.length) {
      line(context, [[x(at), box.top], [x(at), box.bottom]], { colour: theme.mark, width: 2 });
      for (const group of cache.groups) {
        const i = before(group.curve.steps, at);
        if (i < 0) continue;
        const { mean, low, high, seeds } = group.curve;
        context.beginPath(); context.arc(x(group.curve.steps[i]), y(mean[i]), 5, 0, 2 * Math.PI);
        context.fillStyle = rgb(theme.paper); context.fill(); context.strokeStyle = colourOf(group.colour); context.lineWidth = 2.5; context.stroke();
        parts.push(`${group.name} ${number(mean[i])}${seeds > 1 ? ` (${number(low[i])} to ${number(high[i])}, ${seeds} seeds)` : ""}`);
      }
    }
    const words = `step ${at}${parts.length ? `: ${parts.join("; ")}` : ""}`;
    step.show(at, words);
    setText(step.element.querySelector("output"), `step ${at} of ${cache.last}`);
    setText(readout, parts.length ? `Step ${at}, ${name}: ${parts.join(" · ")}` : "");
    chart.canvas.setAttribute("aria-label", `${name} against training step for ${plural(cache.groups.length, "group")} of runs`);
    paintTable(at);
    const count = (state) => runs.filter((run) => run.state === state).length;
    setText(status, runs.length ? ["done", "running", "stopped", "waiting"].map((state) => [count(state), STATES[state]]).filter(([n]) => n).map(([n, word]) => `${n} ${word}`).join(", ") + (model.get("live") ? "; follows the files" : "") : "");
    setText(note, model.get("note"));
    themed = false;
  }

  view.on(["runs", "curves", "metrics", "metric", "fields", "hidden", "sort", "smoothing", "step", "note", "live"], ask);
  ask();
  return () => { ask.cancel(); send.cancel(); view.dispose(); };
}

export default { render };
