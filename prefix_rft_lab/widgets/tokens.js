// Token explorer. All tokens come once as arrays; a step, a layer or a cursor only chooses what is painted.

const KIND_NAMES = ["prefix", "continuation", "on_policy"];
const KIND_WORDS = ["prefix (demonstration)", "continuation (after a prefix)", "on-policy (no prefix)"];
const UNKNOWN = 2;  // of kept: 0 clipped, 1 kept, 2 not recorded
const RIBBON = 18, HISTOGRAM = 128;

// ---------------------------------------------------------------------- data

function unpack(model) {
  const half = HALVES(), Index = model.get("index_type") === "uint16" ? Uint16Array : Uint32Array;
  const halves = (name) => { const bits = typed(model.get(name), Uint16Array); return bits.length ? (i) => half[bits[i]] : null; };
  const ratio = typed(model.get("ratio"), Float32Array), kept = typed(model.get("kept"), Uint8Array);
  const columns = {
    entropy: halves("entropy"), advantage: halves("advantage"), logp: halves("logp"),
    ratio: ratio.length ? (i) => ratio[i] : null,
    kept: kept.some((value) => value !== UNKNOWN) ? (i) => kept[i] : null,
  };
  columns.nll = columns.logp && ((i) => -columns.logp(i));
  const [k] = [model.get("top_k")], topIds = typed(model.get("top_ids"), Index), topProbs = halves("top_probs");
  const texts = model.get("texts"), ids = typed(model.get("text_ids"), Index), kinds = typed(model.get("kinds"), Uint8Array);
  return {
    columns,
    kind: (i) => kinds[i],
    text: (i) => texts[ids[i]],
    alternatives: (i) => (k && topProbs ? Array.from({ length: k }, (_, j) => ({ text: texts[topIds[i * k + j]], p: topProbs(i * k + j) })).filter(({ p }) => !Number.isNaN(p)) : []),
    rollouts: model.get("rollouts").map(([side, step, problem, row, start, count, prefix, score]) => ({ side, step, problem, row, start, count, prefix, score })),
  };
}

// ---------------------------------------------------------------------- layers

/** How a layer shows a value: the fill, and the same once more as a bar, dashed where the value is below its middle. */
function layersOf(columns, scales) {
  const rising = (name, title, unit) => ({
    title, unit, value: columns[name], low: 0, high: scales[name],
    // Most tokens lie near zero: with the square root their differences can be seen.
    look(v, theme) { const t = Math.sqrt(Math.min(Math.max(v / scales[name], 0), 1)); return { fill: theme.heats[Math.round(63 * t)], bar: t > 0.2 ? t : 0 }; },
  });
  const around = (name, title, unit, place, above, below, low, high) => ({
    title, unit, value: columns[name], low, high,
    look(v, theme) { const t = Math.min(Math.max(place(v), -1), 1); return { fill: t ? theme.tint(t > 0 ? above : below, 0.15 + 0.85 * Math.abs(t)) : null, bar: Math.abs(t), dash: t < 0 }; },
  });
  const all = {
    entropy: rising("entropy", "Entropy", "nats"),
    nll: rising("nll", "Surprise (−log p)", "nats"),
    advantage: around("advantage", "Advantage", "", (v) => v / scales.advantage, OKABE_ITO.blue, OKABE_ITO.vermilion, -scales.advantage, scales.advantage),
    ratio: around("ratio", "Ratio π/π_old", "", (v) => Math.log2(v) / scales.ratio, OKABE_ITO.green, OKABE_ITO.purple, -scales.ratio, scales.ratio),
    kept: {
      title: "Kept by the clip", value: columns.kept,
      look(v, theme) { return v === 1 ? { fill: theme.tint(OKABE_ITO.vermilion, 0.75), bar: 0.6 } : { fill: theme.tint(OKABE_ITO.sky, 0.45), bar: 0.35, dash: true }; },
    },
  };
  return { ...Object.fromEntries(Object.entries(all).filter(([, layer]) => layer.value)), plain: { title: "Text only", value: null, look: () => ({}) } };
}

// ---------------------------------------------------------------------- view

function render({ model, el }) {
  const data = unpack(model), scales = model.get("scales"), sides = model.get("sides"), steps = model.get("steps"), problems = model.get("problems");
  const layers = layersOf(data.columns, scales), aligned = model.get("aligned");
  const byStep = new Map();  // side and step -> rollouts
  for (const rollout of data.rollouts) {
    const key = `${rollout.side} ${rollout.step}`;
    if (!byStep.has(key)) byStep.set(key, []);
    byStep.get(key).push(rollout);
  }
  const at = (side, step) => byStep.get(`${side} ${step}`) ?? [];
  const send = sender(model);
  let theme = null, themed = true, legendFor = "";
  const view = explorer({ model, el, title: "Tokens of a rollout", label: "Token explorer", changed: () => { themed = true; ask(); } });
  const { root } = view;
  const ask = painter(root, () => paint());
  const set = (values) => { send(values); ask(); };

  const step = rangeField({ label: "Training step", min: 0, max: Math.max(steps.length - 1, 0), oninput: (i) => set({ step: steps[i] }) });
  const problem = selectField({ label: "Problem", onchange: (value) => {
    const values = { problem: value };
    const where = steps.filter((s) => sides.some((_, side) => at(side, s).some((r) => problems[r.problem] === value)));
    const now = model.get("step");
    if (!where.includes(now)) values.step = where.reduce((best, s) => (Math.abs(s - now) < Math.abs(best - now) ? s : best), where[0]);
    set(values);
  } });
  const row = selectField({ label: "Row", onchange: (value) => set({ row: Number(value) }) });
  const layer = radioField({ label: "Colour", options: Object.entries(layers).map(([key, one]) => [key, one.title]), onchange: (value) => set({ layer: value }) });
  const spaces = checkField({ label: "Visible spaces", onchange: (on) => set({ spaces: on }) });
  const least = rangeField({ label: "Outline tokens from entropy", min: 0, max: 1, step: 0.01, oninput: (share) => set({ threshold: share >= 1 ? -1 : share * scales.entropy }) });
  const legend = drawing({ label: "", height: 36, className: "scale" });
  const note = node("p", { class: "warning", role: "status" });
  if (model.get("note")) setText(note, model.get("note"));

  const panels = sides.map((side, i) => panel(side, i));
  root.append(
    node("div", { class: "bar" }, step.element),
    node("div", { class: "bar" }, problem.element, row.element, spaces.element),
    node("div", { class: "bar" }, layer.element),
    legend.canvas,
    node("div", { class: "legend" }, ...KIND_NAMES.map((kind, i) => {
      const sample = node("canvas", { class: "sample", width: 44, height: 8, "aria-hidden": "true" });
      line(sample.getContext("2d"), [[0, 4], [44, 4]], { colour: "#8a8a8a", width: 3, dash: DASHES[kind].map((d) => 2 * d) });
      sample.hidden = !DASHES[kind].length;
      return node("span", {}, sample, `${["dotted above", "dashed above", "no line"][i]}: ${KIND_WORDS[i]}`);
    }), node("span", {}, node("i", { class: "swatch seam-swatch" }), "the seam: here the policy goes on")),
    note,
    node("div", { class: `panels${sides.length > 1 ? " two" : ""}` }, ...panels.map((one) => one.element)),
    data.columns.entropy ? node("div", { class: "bar" }, least.element) : null,
  );

  // ---------------------------------------------------------------- one run

  function panel(side, index) {
    let rollout = null, cursor = model.get("cursor"), hover = -1, shown = -1, reference = null, revealed = false;
    const many = sides.length > 1, suffix = many ? `, ${side.name}` : "";
    const head = node("p", { class: "note head" });
    const ribbon = drawing({ label: `Overview of the rollout${suffix}`, height: RIBBON });
    const strip = document.createElement("canvas"), pen = strip.getContext("2d");
    const histogram = drawing({ label: `Histogram of entropy${suffix}`, height: HISTOGRAM });
    const text = tokenText({ label: `Token cursor${suffix}`, tallest: many ? 236 : 262, ask,
      look: (i) => look(i), describe: (i) => describe(i),
      pick(i, how) {
        if (how === "hover") hover = i;
        else if (aligned) { for (const one of panels) one.move(i); set({ cursor: i }); }
        else { cursor = i; if (index === 0) send({ cursor: i }); }
        ask();
      } });
    const facts = node("dl", { class: "facts" }), alternatives = node("ol", { class: "alternatives", "aria-label": `Alternatives of the token${suffix}` });
    const empty = node("p", { class: "empty", role: "status" });
    const inspector = node("div", { class: "inspector" }, facts, node("div", {}, node("span", { class: "note" }, "most probable here"), alternatives));
    const body = node("div", { class: "body" }, ribbon.canvas, text.element, node("div", { class: "below" }, inspector, data.columns.entropy ? node("div", {}, histogram.canvas, node("p", { class: "note" }, "bars: this rollout; narrow bars: its prefix tokens; dashed: all steps of this run, scaled; drag to outline")) : null));
    const element = node("section", { class: "panel", "aria-label": side.name }, node("h4", {}, side.name), head, empty, body);

    const name = () => layers[model.get("layer")] ? model.get("layer") : Object.keys(layers)[0];
    function look(i) {
      const one = layers[name()], global = rollout.start + i, limit = model.get("threshold");
      const ring = limit >= 0 && data.columns.entropy !== null && data.columns.entropy(global) >= limit;
      if (!one.value) return { ring };
      const value = one.value(global);
      if (Number.isNaN(value) || (name() === "kept" && (value === UNKNOWN || data.kind(global) !== 0))) return { ring };
      return { ...one.look(value, theme), ring };
    }
    function values(i) {
      const global = rollout.start + i, out = [["kind", KIND_NAMES[data.kind(global)].replace("_", "-")]];
      const add = (column, label, unit) => { if (data.columns[column]) out.push([label, `${number(data.columns[column](global))}${unit}`]); };
      add("entropy", "entropy", " nats");
      if (data.columns.logp) out.push(["probability", `${number(Math.exp(data.columns.logp(global)))}  (log ${number(data.columns.logp(global))})`]);
      add("advantage", "advantage", "");
      add("ratio", "ratio", "");
      if (data.columns.kept && data.kind(global) === 0 && data.columns.kept(global) !== UNKNOWN) {
        // Whole demonstrations are only read: they have no advantage, and the update's threshold says what would be.
        const read = !data.columns.advantage || Number.isNaN(data.columns.advantage(global));
        const [kept, clipped] = read ? ["would be kept: only read", "would be clipped: only read"] : ["kept: trained with its advantage", "clipped: advantage 0"];
        out.push(["clip", data.columns.kept(global) ? kept : clipped]);
      }
      return out;
    }
    function describe(i) {
      const top = data.alternatives(rollout.start + i).slice(0, 3).map(({ text: t, p }) => `${visible(t)} ${percent(p)}`);
      return `token ${i + 1} of ${rollout.count}, ${visible(data.text(rollout.start + i))}; ${values(i).map(([label, value]) => `${label} ${value}`).join(", ")}${top.length ? `; most probable ${top.join(", ")}` : ""}`;
    }

    function paintRibbon() {
      const { width } = ribbon.begin(), { context } = ribbon, count = rollout.count, one = layers[name()];
      const image = pen.createImageData(count, 1), paper = theme.panel;
      for (let i = 0; i < count; i++) {
        const { fill } = one.value ? look(i) : { fill: data.kind(rollout.start + i) === 0 ? theme.tint(OKABE_ITO.grey, 0.6) : null };
        const colour = fill ?? paper;
        for (let c = 0; c < 3; c++) image.data[4 * i + c] = colour[c];
        image.data[4 * i + 3] = 255;
      }
      if (strip.width !== count) [strip.width, strip.height] = [count, 1];
      pen.putImageData(image, 0, 0);
      context.imageSmoothingEnabled = count > width;
      context.drawImage(strip, 0, 3, width, RIBBON - 6);
      context.fillStyle = theme.mark;
      if (rollout.prefix > 0 && rollout.prefix < count) context.fillRect((rollout.prefix / count) * width - 1, 0, 2, RIBBON);
      context.strokeStyle = theme.accent;
      context.lineWidth = 2;
      const size = Math.max(width / count, 4);
      context.strokeRect(Math.min(Math.max((cursor + 0.5) * (width / count) - size / 2, 1), width - size - 1), 1, size, RIBBON - 2);
    }

    const BINS = 32;
    function counts(from, count, only = () => true) {
      const out = new Float64Array(BINS);
      for (let i = from; i < from + count; i++) {
        const value = data.columns.entropy(i);
        if (!Number.isNaN(value) && only(i)) out[Math.min(Math.max(Math.floor((value / scales.entropy) * BINS), 0), BINS - 1)] += 1;
      }
      return out;
    }
    const binBox = (width) => ({ left: 50, top: 6, right: width - 8, bottom: HISTOGRAM - 38 });
    function paintHistogram() {
      const { width } = histogram.begin(), { context } = histogram, box = binBox(width);
      const all = counts(rollout.start, rollout.count), prefix = counts(rollout.start, rollout.count, (i) => data.kind(i) === 0);
      reference ??= counts(side.start, side.count).map((value) => value / Math.max(side.count, 1));
      const scaled = reference.map((value) => value * rollout.count);
      const top = Math.log10(Math.max(...all, ...scaled, 9) + 1) * 1.05;
      const x = (value) => box.left + ((box.right - box.left) * value) / scales.entropy, y = (count) => box.bottom - ((box.bottom - box.top) * Math.log10(count + 1)) / top;
      axes(context, theme, box, { x, y, xTicks: ticks(0, scales.entropy, 5), yTicks: [0, 1, 10, 100, 1000].filter((tick, i) => Math.log10(tick + 1) <= top && (i !== 1 || y(0) - y(1) > 13)), xName: "entropy (nats)", yName: "tokens" });
      const wide = (box.right - box.left) / BINS;
      for (let bin = 0; bin < BINS; bin++) {
        context.fillStyle = rgb(theme.heats[Math.round(63 * Math.sqrt((bin + 0.5) / BINS))]);
        context.strokeStyle = theme.muted;
        context.lineWidth = 0.75;
        const left = box.left + bin * wide;
        if (all[bin]) { context.fillRect(left + 0.5, y(all[bin]), wide - 1, box.bottom - y(all[bin])); context.strokeRect(left + 0.5, y(all[bin]), wide - 1, box.bottom - y(all[bin])); }
        if (prefix[bin]) { context.fillStyle = theme.ink; context.fillRect(left + wide / 2 - 1.5, y(prefix[bin]), 3, box.bottom - y(prefix[bin])); }
      }
      line(context, [...scaled].flatMap((value, bin) => [[box.left + bin * wide, y(value)], [box.left + (bin + 1) * wide, y(value)]]), { colour: theme.muted, width: 1.2, dash: [3, 2] });
      const limit = model.get("threshold"), mine = data.columns.entropy(rollout.start + (hover >= 0 ? hover : cursor));
      if (limit >= 0) line(context, [[x(limit), box.top], [x(limit), box.bottom]], { colour: theme.ink, width: 1.5 });
      if (!Number.isNaN(mine)) {
        const px = x(Math.min(mine, scales.entropy));
        context.beginPath(); context.moveTo(px, box.bottom - 1); context.lineTo(px - 5, box.bottom + 7); context.lineTo(px + 5, box.bottom + 7); context.closePath();
        context.fillStyle = theme.accent; context.fill();
      }
    }
    drag(histogram.canvas, {
      start: () => rollout !== null,
      move(px) { const box = binBox(histogram.canvas.clientWidth), share = (px - box.left) / (box.right - box.left); set({ threshold: share >= 1 ? -1 : Math.max(share, 0) * scales.entropy }); },
    });
    drag(ribbon.canvas, {
      start: () => rollout !== null,
      move(px) {
        const i = Math.min(Math.max(Math.floor((px / ribbon.canvas.clientWidth) * rollout.count), 0), rollout.count - 1);
        if (aligned) { for (const one of panels) one.move(i); set({ cursor: i }); } else cursor = i;
        text.paint(theme, { cursor: i, spaces: model.get("spaces"), seam: seam() });
        text.reveal();
        ask();
      },
    });

    function paintInspector() {
      const i = hover >= 0 && hover < rollout.count ? hover : cursor;
      const rows = [["token", `${i + 1} of ${rollout.count}`], ["text", visible(data.text(rollout.start + i))], ...values(i)];
      while (facts.children.length > 2 * rows.length) facts.lastChild.remove();
      while (facts.children.length < 2 * rows.length) facts.append(node("dt"), node("dd"));
      rows.forEach(([label, value], j) => { setText(facts.children[2 * j], label); setText(facts.children[2 * j + 1], value); });
      const top = data.alternatives(rollout.start + i), mine = data.text(rollout.start + i);
      while (alternatives.children.length > Math.max(top.length, 1)) alternatives.lastChild.remove();
      while (alternatives.children.length < Math.max(top.length, 1)) alternatives.append(node("li", {}, node("code"), node("i"), node("span")));
      [...alternatives.children].forEach((item, j) => {
        const [code, bar, share] = item.children, one = top[j];
        setText(code, one ? visible(one.text) : "not recorded");
        bar.style.width = one ? `${Math.max(100 * one.p, 1)}%` : "0";
        setText(share, !one ? "" : one.p < 0.0005 ? "<0.1%" : `${(100 * one.p).toFixed(1)}%`);
        item.classList.toggle("own", Boolean(one) && one.text === mine);
        if (one && one.text === mine) item.setAttribute("aria-current", "true"); else item.removeAttribute("aria-current");
      });
    }

    const seam = () => (rollout.prefix > 0 && rollout.prefix < rollout.count ? rollout.prefix : -1);
    return {
      element,
      move(i) { if (rollout) cursor = Math.min(i, rollout.count - 1); },
      get outlined() { if (!rollout || model.get("threshold") < 0) return [0, 0]; const limit = model.get("threshold"); let n = 0; for (let i = 0; i < rollout.count; i++) n += limit >= 0 && data.columns.entropy(rollout.start + i) >= limit; return [n, rollout.count]; },
      paint(chosen, why) {
        setText(empty, why);
        empty.hidden = why === "";
        body.hidden = head.hidden = chosen === null;
        rollout = chosen;
        if (!rollout) { shown = -1; return; }
        if (shown !== rollout.start) {
          shown = rollout.start;
          const all = Array.from({ length: rollout.count }, (_, i) => i + rollout.start);
          text.tokens(all.map(data.text), all.map((i) => KIND_NAMES[data.kind(i)]));
          hover = -1;
        }
        cursor = Math.min(cursor, rollout.count - 1);
        const parts = [`step ${rollout.step}`, problems[rollout.problem], `row ${rollout.row}`,
          rollout.prefix === 0 ? plural(rollout.count, "token") : rollout.prefix === rollout.count ? `${plural(rollout.count, "token")}, all of a demonstration`
            : `${rollout.prefix} prefix + ${rollout.count - rollout.prefix} own tokens`];
        if (rollout.score !== null) parts.push(`score ${number(rollout.score)}`);
        setText(head, parts.join(" · "));
        text.paint(theme, { cursor, spaces: model.get("spaces"), seam: seam() });
        if (!revealed) { revealed = true; text.reveal(); }
        paintRibbon();
        if (data.columns.entropy) paintHistogram();
        paintInspector();
      },
    };
  }

  // ---------------------------------------------------------------- choosing and painting

  /** What a side shows: the wanted problem and row where it recorded them, else the nearest thing, else a sentence. */
  function resolve(side, wanted, wantedRow) {
    const here = at(side, model.get("step"));
    if (!here.length) {
      const own = steps.filter((s) => at(side, s).length);
      return { rollout: null, why: `${sides[side].name} recorded no tokens at step ${model.get("step")}; it did at ${own.slice(0, 8).join(", ")}${own.length > 8 ? ", …" : ""}.` };
    }
    const same = here.filter((rollout) => problems[rollout.problem] === wanted);
    const group = same.length ? same : here.filter((rollout) => rollout.problem === here[0].problem);
    return { rollout: group.find((rollout) => rollout.row === wantedRow) ?? group[group.length - 1], why: "" };
  }

  function paintLegend(name) {
    if (name === legendFor) return;
    legendFor = name;
    const { context } = legend, one = layers[name], { width } = legend.begin();
    context.font = `11px ${theme.ui}`;
    context.textBaseline = "top";
    const write = (text, x, align = "center") => { context.textAlign = align; context.fillStyle = theme.muted; context.fillText(text, x, 20); };
    const words = [];
    if (name === "plain") { write("no layer: text only", 0, "left"); words.push("no layer"); }
    else if (name === "kept") {
      [[1, "kept: solid line below"], [0, "clipped: dashed line below"]].forEach(([value, text], i) => {
        const { fill, bar, dash } = one.look(value, theme), x = 190 * i;
        context.fillStyle = rgb(fill); context.fillRect(x, 3, 26, 12);
        line(context, [[x, 16], [x + 26, 16]], { colour: theme.ink, width: 1 + 3 * bar, dash: dash ? [2, 2] : [] });
        context.textBaseline = "middle"; context.textAlign = "left"; context.fillStyle = theme.muted;
        context.fillText(text, x + 32, 10);
        words.push(text);
      });
      context.fillText("no colour: not a prefix token, the clip does not concern it", 380, 10);
    } else {
      const wide = Math.min(320, width - 190), step = 3;
      for (let px = 0; px < wide; px += step) {
        const place = one.low + ((one.high - one.low) * (px + step / 2)) / wide, value = name === "ratio" ? 2 ** place : place;
        const { fill, bar, dash } = one.look(value, theme);
        context.fillStyle = rgb(fill ?? theme.paper); context.fillRect(px, 0, step, 12);
        context.fillStyle = theme.ink;
        if (!dash || px % (2 * step)) context.fillRect(px, 17 - 4 * Math.min(bar, 1), step, 4 * Math.min(bar, 1));
      }
      for (const tick of ticks(one.low, one.high, 4)) {
        const x = ((tick - one.low) / (one.high - one.low)) * wide;
        const label = name === "ratio" ? `×${number(2 ** tick, 2)}` : number(tick, 2);
        write(label, x, x < 5 ? "left" : x > wide - 5 ? "right" : "center");
      }
      context.textBaseline = "middle"; context.textAlign = "left"; context.fillStyle = theme.ink;
      context.fillText(`${one.title.toLowerCase()}${one.unit ? ` (${one.unit})` : ""}; fixed over all steps`, wide + 10, 8);
      words.push(`${one.title} from ${number(one.low)} to ${number(one.high)} ${one.unit}, fixed over all steps`);
    }
    legend.canvas.setAttribute("aria-label", `Legend: ${words.join("; ")}`);
  }

  function paint() {
    if (themed) {
      theme = palette(root);
      theme.panel = channels(getComputedStyle(root).getPropertyValue("--panel").trim());
      theme.heats = Array.from({ length: 64 }, (_, i) => theme.heat(i / 63));
      themed = false;
      legendFor = "";
    }
    const name = layers[model.get("layer")] ? model.get("layer") : Object.keys(layers)[0];
    const now = Math.max(steps.indexOf(model.get("step")), 0);
    step.show(now, `step ${steps[now]} (${now + 1} of ${steps.length})`);
    layer.show(name);
    spaces.show(model.get("spaces"));
    let wanted = model.get("problem");
    const chosen = sides.map((_, side) => {
      const found = resolve(side, wanted, model.get("row"));
      // The other side follows the problem that the first one really shows.
      if (found.rollout && side === 0) wanted = problems[found.rollout.problem];
      return found;
    });
    const lead = chosen.find(({ rollout }) => rollout)?.rollout;
    if (lead) {
      const here = new Set(sides.flatMap((_, side) => at(side, steps[now]).map((rollout) => problems[rollout.problem])));
      const elsewhere = problems.filter((one) => !here.has(one)).slice(0, 500);
      const pairs = (list) => list.map((one) => [one, visible(one, false)]);
      problem.options({ "recorded at this step": pairs([...here]), ...(elsewhere.length ? { "at other steps": pairs(elsewhere) } : {}) });
      problem.show(problems[lead.problem]);
      const rows = at(lead.side, steps[now]).filter((rollout) => rollout.problem === lead.problem);
      row.options(rows.map((one) => [one.row, `${one.row} · ${one.prefix === 0 ? "plain" : one.prefix === one.count ? "demonstration" : "hybrid"}${one.score === null ? "" : ` · score ${number(one.score)}`}`]));
      row.show(lead.row);
    }
    // Without a choice of a problem, the first run leads and the other one is expected to follow.
    const expected = model.get("problem") || (chosen[0].rollout ? wanted : "");
    const others = chosen.flatMap(({ rollout }, side) => (rollout && expected && problems[rollout.problem] !== expected
      ? [`${sides[side].name} did not record ${expected} at step ${steps[now]}; ${problems[rollout.problem]} is shown.`] : []));
    setText(note, [model.get("note"), ...others].filter(Boolean).join(" "));
    paintLegend(name);
    panels.forEach((one, side) => one.paint(chosen[side].rollout, chosen[side].why));
    if (data.columns.entropy) {
      const limit = model.get("threshold"), [some, of] = panels.reduce((sum, one) => one.outlined.map((n, i) => n + sum[i]), [0, 0]);
      least.show(limit >= 0 ? Math.min(limit / scales.entropy, 1) : 1, limit >= 0 ? `${number(limit, 2)} nats: ${some} of ${of} (${percent(some / of)})` : "off");
    }
  }

  const follow = () => { for (const one of aligned ? panels : panels.slice(0, 1)) one.move(model.get("cursor")); ask(); };
  view.on(["step", "problem", "row", "layer", "spaces", "threshold"], ask);
  view.on(["cursor"], follow);
  ask();
  return () => { ask.cancel(); send.cancel(); view.dispose(); };
}

export default { render };
