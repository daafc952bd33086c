// Schedule explorer. The formulas are those of schedules.py, computed here so that editing never waits for Python.

const FIELDS = ["schedule", "high", "low", "decay_steps", "delay_steps", "warmup_ratio", "alpha", "beta", "min_tokens"];
const OVERLAY_LOOKS = [
  [OKABE_ITO.vermilion, [7, 3]], [OKABE_ITO.green, [2, 2]], [OKABE_ITO.purple, [9, 3, 2, 3]], [OKABE_ITO.orange, [4, 2]], [OKABE_ITO.grey, [1, 2]],
];

// ---------------------------------------------------------------------- formulas

function movingEnd(config, step) {
  const { high, low, decay_steps: decay, warmup_ratio: share, schedule } = config;
  const warmup = Math.trunc(decay * share);
  if (step < warmup) return (high * step) / warmup;
  const done = step - warmup;
  if (schedule === "linear") return done >= decay ? low : low + (1 - done / decay) * (high - low);
  return done > decay ? low : low + ((1 + Math.cos((Math.PI * done) / decay)) / 2) * (high - low);
}

/** [low, high] of the ratios at a step. */
function ratioWindow(config, step) {
  // A schedule of the user's: Python computed its windows, one per step.
  const own = config.windows?.[config.schedule];
  if (own) return own[Math.min(Math.max(Math.round(step), 0), own.length - 1)];
  if (config.schedule === "uniform") return [config.low, config.high];
  if (config.schedule === "constant" || step < config.delay_steps) return [config.high, config.high];
  const moving = movingEnd(config, step - config.delay_steps);
  return [Math.min(moving, config.high), Math.max(moving, config.high)];
}

function meanRatio(config, step) {
  const [low, high] = ratioWindow(config, step);
  return low + ((high - low) * config.alpha) / (config.alpha + config.beta);
}

function prefixLength(ratio, tokens, least) {
  if (ratio === 0 || tokens === 0) return 0;
  return Math.min(Math.max(Math.floor(ratio * tokens), least), tokens - 1);
}

function logGamma(x) {  // Lanczos, g = 7
  const c = [0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059, 12.507343278686905,
    -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7];
  if (x < 0.5) return Math.log(Math.PI / Math.sin(Math.PI * x)) - logGamma(1 - x);
  const t = x + 6.5;
  let sum = c[0];
  for (let i = 1; i < 9; i++) sum += c[i] / (x - 1 + i);
  return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(t) - t + Math.log(sum);
}

/** P(Beta(a, b) <= x): the regularised incomplete beta function by Lentz's continued fraction. */
function betaCdf(x, a, b) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (a === 1 && b === 1) return x;
  if (x > (a + 1) / (a + b + 2)) return 1 - betaCdf(1 - x, b, a);
  const tiny = 1e-300;
  let c = 1, d = 1 - ((a + b) * x) / (a + 1);
  d = 1 / (Math.abs(d) < tiny ? tiny : d);
  let sum = d;
  for (let m = 1; m <= 500; m++) {
    const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
    const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
    let change = 1;
    for (const part of [even, odd]) {
      d = 1 + part * d; d = 1 / (Math.abs(d) < tiny ? tiny : d);
      c = 1 + part / c; if (Math.abs(c) < tiny) c = tiny;
      change = c * d;
      sum *= change;
    }
    if (Math.abs(change - 1) < 1e-13) break;
  }
  return (Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log(1 - x)) / a) * sum;
}

function betaQuantile(p, a, b) {
  if (a === 1 && b === 1) return p;
  let low = 0, high = 1;
  for (let i = 0; i < 50; i++) { const middle = (low + high) / 2; if (betaCdf(middle, a, b) < p) low = middle; else high = middle; }
  return (low + high) / 2;
}

/** P(token i is part of the prefix) for each of `tokens` tokens, at a step. */
function givenProbabilities(config, step, tokens) {
  const [low, high] = ratioWindow(config, step), out = new Float64Array(tokens);
  const shortest = prefixLength(low, tokens, config.min_tokens), longest = prefixLength(high, tokens, config.min_tokens);
  for (let i = 0; i < longest; i++) {
    // Tokens 0..i are given if the ratio is at least (i + 1) / tokens.
    out[i] = i < shortest ? 1 : high > low ? 1 - betaCdf(((i + 1) / tokens - low) / (high - low), config.alpha, config.beta) : 0;
  }
  return out;
}

export const formulas = { ratioWindow, meanRatio, prefixLength, betaCdf, betaQuantile, givenProbabilities };

// ---------------------------------------------------------------------- text of a config

const plain = (value) => (typeof value === "number" && !Number.isInteger(value)
  ? (Math.abs(value) < 1e-6 ? value.toFixed(12) : String(Number(value.toPrecision(6)))) : String(value));

function configText(format, config, original) {
  const changed = FIELDS.filter((name) => config[name] !== original[name]);
  if (format === "yaml") return ["prefix:", ...FIELDS.map((name) => `  ${name}: ${plain(config[name])}`)].join("\n");
  if (format === "command") return changed.length ? changed.map((name) => `--set prefix.${name}=${plain(config[name])}`).join(" ") : "# nothing is changed";
  const quoted = (name) => (name === "schedule" ? JSON.stringify(config[name]) : plain(config[name]));
  return changed.length ? `config.replace(**{${changed.map((name) => `"prefix.${name}": ${quoted(name)}`).join(", ")}})` : "config  # nothing is changed";
}

// ---------------------------------------------------------------------- view

const BOX = { left: 52, top: 10, right: 120, bottom: 44 };  // margins of the chart; the right one holds the distribution
const HEIGHT = 280;

function render({ model, el }) {
  const steps = Math.max(model.get("steps"), 1), original = model.get("original");
  const demonstrations = model.get("demonstrations"), named = model.get("overlays");
  const read = () => ({ ...Object.fromEntries(FIELDS.map((name) => [name, model.get(name)])), windows: model.get("windows") });
  const KINDS = model.get("kinds");
  const send = sender(model);
  const view = explorer({ model, el, title: "Prefix-ratio schedule", label: "Schedule explorer", changed: () => { dirty = true; ask(); } });
  const { root } = view;
  const ask = painter(root, () => paint());
  let dirty = true, domain = 0, quantile = 0.5, theme = null;
  const shownOverlays = new Set(named.map((_, i) => `named ${i}`));

  // The chart, and what belongs to its step.
  const chart = drawing({ label: "", height: HEIGHT }), still = layer(HEIGHT);
  const readout = node("p", { class: "readout", role: "status", "aria-live": "off" });
  const step = rangeField({ label: "Training step", min: 0, max: steps - 1, oninput: (value) => edit({ step: value }) });
  const draw = rangeField({ label: "Drawn ratio (quantile)", min: 0, max: 1, step: 0.01, oninput: (value) => { quantile = value; ask(); } });
  const which = selectField({ label: "Demonstration", onchange: (value) => edit({ demonstration: Number(value) }) });
  which.options(demonstrations.map((tokens, i) => [i, `${i + 1} of ${demonstrations.length} (${plural(tokens.length, "token")})`]));
  const text = tokenText({
    label: "Demonstration, token by token", tallest: 184, ask, look: (i) => looks(i), describe: (i) => describe(i),
    pick: (i, how) => { if (how === "cursor") cursor = i; hover = how === "hover" ? i : -1; ask(); },
  });
  const about = node("p", { class: "note readout" });
  let cursor = 0, hover = -1, given = new Float64Array(0), shownTokens = null, shownLength = -1, settled = 0;

  // Controls of the schedule.
  const limits = {
    high: { name: "High", min: 0, max: 1, step: 0.01 }, low: { name: "Low", min: 0, max: 1, step: 0.01 },
    decay_steps: { name: "Decay, steps", min: 1, max: Math.max(2 * steps, original.decay_steps), step: 1, least: 1 },
    delay_steps: { name: "Delay, steps", min: 0, max: steps, step: 1, least: 0 },
    warmup_ratio: { name: "Warm-up, share of decay", min: 0, max: 1, step: 0.01 },
    alpha: { name: "Beta shape α", min: -1, max: 1, step: 0.02, log: true }, beta: { name: "Beta shape β", min: -1, max: 1, step: 0.02, log: true },
    min_tokens: { name: "Shortest prefix, tokens", min: 0, max: 32, step: 1, least: 0 },
  };
  const problem = node("p", { class: "warning", role: "alert" });
  const kind = selectField({ label: "Schedule", onchange: (value) => edit({ schedule: value }) });
  kind.options(KINDS.map((name) => [name, name]));
  const fields = Object.fromEntries(Object.entries(limits).map(([name, limit]) => [name, editField(name, limit)]));

  function editField(name, { name: label, min, max, step: by, log }) {
    const slide = node("input", { type: "range", min, max, step: by, "aria-label": label,
      oninput: () => { const raw = Number(slide.value); change(name, log ? Number((10 ** raw).toPrecision(2)) : raw); } });
    const type = node("input", { type: "number", step: log ? "any" : by === 1 ? 1 : "any", "aria-label": `${label}, number`,
      onchange: () => { if (!change(name, type.value === "" ? NaN : Number(type.value))) type.setAttribute("aria-invalid", "true"); } });
    return {
      element: node("div", { class: "edit" }, node("span", { class: "name", "aria-hidden": "true" }, label), slide, type),
      show(value) {
        slide.value = log ? Math.log10(value) : value;
        slide.setAttribute("aria-valuetext", plain(value));
        if (root.ownerDocument.activeElement !== type || Number(type.value) !== value) type.value = plain(value);
        type.removeAttribute("aria-invalid");
      },
    };
  }
  /** Why a value cannot be used; empty if it can. The same limits as PrefixConfig. */
  function refusal(name, value, config) {
    const limit = limits[name];
    if (!Number.isFinite(value)) return `${limit.name} needs a number.`;
    if ("least" in limit) return Number.isInteger(value) && value >= limit.least ? "" : `${limit.name} = ${plain(value)} must be a whole number, ${limit.least} or more.`;
    if (limit.log) return value > 0 ? "" : `${limit.name} = ${plain(value)} must be above 0.`;
    if (value < 0 || value > 1) return `${limit.name} = ${plain(value)} must lie between 0 and 1.`;
    if (name === "low" && value > config.high) return `Low = ${plain(value)} lies above high = ${plain(config.high)}; raise high first.`;
    if (name === "high" && value < config.low) return `High = ${plain(value)} lies below low = ${plain(config.low)}; lower low first.`;
    return "";
  }
  function change(name, value) {
    const reason = refusal(name, value, read());
    setText(problem, reason);
    if (reason) { ask(); if (name in fields && limits[name].max === 1) fields[name].show(model.get(name)); return false; }
    edit({ [name]: value });
    return true;
  }
  function edit(values) {
    send(values);
    // A step is not an edit: the chart stays as it is.
    dirty ||= FIELDS.some((name) => name in values);
    ask();
  }

  // Overlays: the other kinds with the same numbers, and configs that Python named.
  const checks = node("fieldset", { class: "radio" }, node("legend", {}, "Compare with"));
  const overlayList = [...KINDS.map((name) => ({ key: name, text: name })), ...named.map((one, i) => ({ key: `named ${i}`, text: one.name, config: one }))];
  overlayList.forEach((overlay, i) => {
    const sample = node("canvas", { class: "sample", width: 44, height: 8, "aria-hidden": "true" });
    [overlay.colour, overlay.dash] = OVERLAY_LOOKS[i % OVERLAY_LOOKS.length];
    line(sample.getContext("2d"), [[0, 4], [44, 4]], { colour: overlay.colour, width: 4, dash: overlay.dash.map((d) => 2 * d) });
    overlay.field = checkField({ label: overlay.text, checked: shownOverlays.has(overlay.key), sample,
      onchange: (on) => { if (on) shownOverlays.add(overlay.key); else shownOverlays.delete(overlay.key); dirty = true; ask(); } });
    checks.append(overlay.field.element);
  });

  // Copy.
  let format = "yaml";
  const snippet = node("textarea", { readonly: true, rows: 4, "aria-label": "Schedule as config", spellcheck: "false" });
  const copied = node("span", { class: "note", role: "status" });
  const formats = radioField({ label: "Format", options: [["yaml", "YAML"], ["command", "command line"], ["python", "Python"]],
    onchange: (value) => { format = value; setText(copied, ""); dirty = true; ask(); } });
  formats.show(format);
  const copy = node("button", { type: "button", onclick: async () => {
    snippet.select();
    try { await navigator.clipboard.writeText(snippet.value); setText(copied, "Copied."); } catch { setText(copied, "Selected: press Ctrl+C."); }
  } }, "Copy as config");
  const reset = node("button", { type: "button", onclick: () => { setText(problem, ""); edit(original); } }, "Reset");

  root.append(
    node("div", { class: "legend" }, ...[["band", "window of ratios, stronger where more likely"], ["mean", "expected ratio"], ["seam-swatch", "this step"]]
      .map(([name, words]) => node("span", {}, node("i", { class: `swatch ${name}` }), words)),
    node("span", {}, node("i", { class: "swatch knob" }), "drag to edit")),
    node("div", { class: "stack" }, still.canvas, chart.canvas), readout,
    node("div", { class: "bar" }, step.element),
    demonstrations.length ? node("div", { class: "split" },
      node("div", { class: "bar" }, which.element, draw.element),
      text.element, about) : node("p", { class: "note" }, "No demonstration was given; pass the texts of its tokens to see it split."),
    node("div", { class: "editor" },
      node("div", { class: "edits" }, kind.element, ...Object.values(fields).map((field) => field.element)),
      problem),
    node("div", { class: "bar" }, checks),
    node("details", {}, node("summary", {}, "Use this schedule"),
      node("div", { class: "bar" }, formats.element, copy, reset, copied), snippet),
  );

  // Geometry.
  let width = 600;
  const inner = () => ({ left: BOX.left, top: BOX.top, right: width - BOX.right, bottom: HEIGHT - BOX.bottom });
  const decayEnd = (config) => config.delay_steps + Math.trunc(config.decay_steps * config.warmup_ratio) + config.decay_steps;
  const moves = (config) => config.schedule === "cosine" || config.schedule === "linear";
  const x = (at) => { const box = inner(); return box.left + ((box.right - box.left) * at) / Math.max(domain, 1); };
  const y = (ratio) => { const box = inner(); return box.top + (box.bottom - box.top) * (1 - ratio); };
  const back = (px, py) => { const box = inner(); return [(Math.max(domain, 1) * (px - box.left)) / (box.right - box.left), 1 - (py - box.top) / (box.bottom - box.top)]; };
  const handles = (config) => [
    { name: "high", at: [x(0), y(config.high)] },
    { name: "low", at: [moves(config) ? x(Math.min(decayEnd(config), domain)) : x(domain), y(config.low)], hidden: config.schedule === "constant" },
  ].filter((handle) => !handle.hidden);

  let held = null;
  drag(chart.canvas, {
    start(px, py) {
      const near = handles(read()).map((handle) => [Math.hypot(px - handle.at[0], py - handle.at[1]), handle.name]).sort((a, b) => a[0] - b[0])[0];
      held = near && near[0] < 14 ? near[1] : px >= BOX.left - 8 && px <= width - BOX.right + 8 ? "step" : null;
      return held !== null;
    },
    move(px, py) {
      const config = read(), [at, ratio] = back(px, py);
      const share = Math.round(Math.min(Math.max(ratio, 0), 1) * 100) / 100;
      if (held === "step") edit({ step: Math.min(Math.max(Math.round(at), 0), steps - 1) });
      else if (held === "high") edit({ high: Math.max(share, config.low) });
      else {
        const values = { low: Math.min(share, config.high) };
        if (moves(config)) values.decay_steps = Math.max(Math.round((Math.min(at, domain) - config.delay_steps) / (1 + config.warmup_ratio)), 1);
        edit(values);
      }
    },
    end() { held = null; dirty = true; ask(); },
  });
  chart.canvas.addEventListener("pointermove", (event) => {
    const box = chart.canvas.getBoundingClientRect();
    const near = handles(read()).some((handle) => Math.hypot(event.clientX - box.left - handle.at[0], event.clientY - box.top - handle.at[1]) < 14);
    chart.canvas.style.cursor = near || held === "high" || held === "low" ? "grab" : "col-resize";
  });

  /** Everything that the step does not move, on a canvas of its own. */
  function paintStill(config) {
    still.canvas.width = chart.canvas.width;
    still.canvas.height = chart.canvas.height;
    const context = still.context, ratio = devicePixelRatio || 1, box = inner();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    // One profile of the Beta density, stretched over the window of each pixel column.
    const profile = document.createElement("canvas");
    [profile.width, profile.height] = [1, 64];
    const pen = profile.getContext("2d"), density = Array.from({ length: 64 }, (_, i) => betaCdf((i + 1) / 64, config.alpha, config.beta) - betaCdf(i / 64, config.alpha, config.beta));
    const most = Math.max(...density);
    density.forEach((value, i) => { pen.fillStyle = theme.accent; pen.globalAlpha = 0.04 + 0.3 * (value / most); pen.fillRect(0, 63 - i, 1, 1); });
    context.imageSmoothingEnabled = true;
    for (let px = Math.floor(box.left); px < box.right; px++) {
      const [low, high] = ratioWindow(config, Math.max(back(px + 0.5, 0)[0], 0));
      context.drawImage(profile, px, y(high) - 0.5, 1, Math.max(y(low) - y(high), 0) + 1);
    }
    axes(context, theme, box, { x, y, xTicks: ticks(0, domain, 6), yTicks: [0, 0.25, 0.5, 0.75, 1], xName: "training step", yName: "prefix ratio (share of demonstration)" });
    if (domain > steps) {
      line(context, [[x(steps), box.top], [x(steps), box.bottom]], { colour: theme.muted, dash: [2, 3] });
      context.fillStyle = theme.muted; context.textAlign = "right"; context.textBaseline = "bottom";
      context.fillText("the run ends", x(steps) - 4, box.bottom - 2);
    }
    const curve = (one, value) => Array.from({ length: 241 }, (_, i) => { const at = (domain * i) / 240; return [x(at), y(value(one, at))]; });
    for (const overlay of overlayList) {
      if (!shownOverlays.has(overlay.key)) continue;
      const other = overlay.config ?? { ...config, schedule: overlay.key };
      line(context, curve(other, meanRatio), { colour: rgb(theme.paper), width: 4.5 });
      line(context, curve(other, meanRatio), { colour: overlay.colour, width: 2.25, dash: overlay.dash });
      line(context, curve(other, (one, at) => ratioWindow(one, at)[0]), { colour: overlay.colour, width: 0.8, dash: overlay.dash });
    }
    line(context, curve(config, (one, at) => ratioWindow(one, at)[0]), { colour: theme.accent, width: 1 });
    line(context, curve(config, (one, at) => ratioWindow(one, at)[1]), { colour: theme.accent, width: 1 });
    line(context, curve(config, meanRatio), { colour: theme.accent, width: 2.5 });
    for (const { at: [px, py] } of handles(config)) {
      context.beginPath(); context.arc(px, py, 6.5, 0, 2 * Math.PI);
      context.fillStyle = rgb(theme.paper); context.fill();
      context.strokeStyle = theme.accent; context.lineWidth = 2.5; context.stroke();
    }
  }

  /** The distribution of this step's prefix lengths, on the chart's own ratio axis. */
  function paintDistribution(context, box, tokens) {
    const left = box.right + 20, right = width - 16, count = tokens.length;
    context.font = `11px ${theme.ui}`;
    line(context, [[left, box.top], [left, box.bottom]], { colour: theme.muted });
    const config = read(), [low, high] = ratioWindow(config, model.get("step"));
    const n = count || 60, bins = Math.min(n, 60), mass = new Float64Array(bins);
    if (count) {
      for (let k = 0; k < n; k++) mass[Math.floor((k * bins) / n)] += (k ? given[k - 1] : 1) - given[k];
    } else {
      const cdf = (r) => (high > low ? betaCdf((r - low) / (high - low), config.alpha, config.beta) : r >= high ? 1 : 0);
      for (let i = 0; i < n; i++) mass[i] = cdf((i + 1) / n) - cdf(i / n);
    }
    const most = Math.max(...mass);
    context.fillStyle = theme.accent;
    for (let i = 0; i < bins; i++) {
      const top = y((i + 1) / bins), tall = y(i / bins) - top;
      if (mass[i] > 0) context.fillRect(left, top + 0.5, (mass[i] / most) * (right - left), Math.max(tall - 1, 1));
    }
    context.fillStyle = theme.muted; context.textBaseline = "top"; context.textAlign = "right";
    context.fillText(percent(most), right, box.bottom + 7);
    context.textAlign = "left"; context.fillText("0", left - 3, box.bottom + 7);
    context.textAlign = "center"; context.fillText(count > 60 ? "P(length in bin)" : count ? "P(prefix length)" : "P(ratio in bin)", (left + right) / 2, box.bottom + 22);
  }

  const expected = (probabilities) => probabilities.reduce((sum, p) => sum + p, 0);
  const looks = (i) => ({ fill: given[i] > 0 ? theme.tint(theme.accent, 0.12 + 0.68 * given[i]) : null, bar: given[i] > 0 ? 0.35 : 0, dash: given[i] < 1 });
  const describe = (i) => `token ${i + 1} of ${shownTokens.length}, ${visible(shownTokens[i])}: ${given[i] >= 1 ? "always given" : given[i] <= 0 ? "always the policy's" : `given with probability ${given[i].toFixed(2)}`}`;

  function paint() {
    const config = read(), at = Math.min(Math.max(model.get("step"), 0), steps - 1);
    theme = palette(root);
    ({ width } = chart.begin());
    if (!held) domain = Math.max(steps - 1, moves(config) ? decayEnd(config) : 0, 1);
    const [low, high] = ratioWindow(config, at), mean = meanRatio(config, at);
    const tokens = demonstrations[model.get("demonstration")] ?? demonstrations[0] ?? [];
    given = givenProbabilities(config, at, tokens.length);
    const share = tokens.length ? expected(given) / tokens.length : NaN;
    if (dirty) {
      paintStill(config);
      kind.show(config.schedule);
      for (const [name, field] of Object.entries(fields)) field.show(config[name]);
      for (const name of ["decay_steps", "delay_steps", "warmup_ratio"]) fields[name].element.classList.toggle("idle", !moves(config) && !(name === "delay_steps"));
      for (const overlay of overlayList) overlay.field.element.hidden = overlay.key === config.schedule;
      snippet.value = configText(format, config, original);
      chart.canvas.setAttribute("aria-label", `Window of prefix ratios over training: ${config.schedule}, ${ratioWindow(config, 0).map((r) => r.toFixed(2)).join(" to ")} at step 0, `
        + `${ratioWindow(config, steps - 1).map((r) => r.toFixed(2)).join(" to ")} at step ${steps - 1}`);
      dirty = false;
    }
    const context = chart.context, box = inner();
    line(context, [[x(at), box.top], [x(at), box.bottom]], { colour: theme.mark, width: 2 });
    context.beginPath(); context.arc(x(at), y(mean), 4, 0, 2 * Math.PI); context.fillStyle = theme.mark; context.fill();
    paintDistribution(context, box, tokens);
    const words = `step ${at}: ratio ${low.toFixed(2)} to ${high.toFixed(2)}, mean ${mean.toFixed(2)}`;
    step.show(at, words);
    setText(step.element.querySelector("output"), `step ${at} of ${steps - 1}`);
    setText(readout, `Step ${at}: ratios ${low.toFixed(2)} to ${high.toFixed(2)}, mean ${mean.toFixed(2)}.${tokens.length
      ? ` Expected prefix ${expected(given).toFixed(1)} of ${tokens.length} tokens (${percent(share)}).` : ""}`);
    if (!tokens.length) return;
    const ratio = low + (high - low) * betaQuantile(quantile, config.alpha, config.beta), length = prefixLength(ratio, tokens.length, config.min_tokens);
    draw.show(quantile, `${quantile.toFixed(2)}: ratio ${ratio.toFixed(2)}, ${plural(length, "token")}`);
    which.show(demonstrations.indexOf(tokens));
    if (shownTokens !== tokens) { shownTokens = tokens; cursor = 0; text.tokens(tokens); }
    text.paint(theme, { cursor, seam: length });
    // A long demonstration scrolls along, unless somebody is reading in it.
    if (length !== shownLength && document.activeElement !== text.element) {
      shownLength = length;
      // Scrolling costs a layout of the page: it waits until the step rests.
      clearTimeout(settled);
      settled = setTimeout(() => text.reveal(length), 120);
    }
    const i = hover >= 0 ? hover : cursor;
    setText(about, `${describe(i).replace(/^t/, "T")}. Solid underline: always given; dashed: given or not; none: always the policy's. The bar marks a draw of ${ratio.toFixed(2)}: ${plural(length, "token")} given.`);
  }

  const repaint = () => { dirty = true; ask(); };
  view.on([...FIELDS, "original", "windows"], repaint);
  view.on(["step", "demonstration"], ask);
  ask();
  return () => { ask.cancel(); send.cancel(); clearTimeout(settled); view.dispose(); };
}

export default { render };
