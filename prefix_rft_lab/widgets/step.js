// Step explorer. The step's tokens and about 50 moves come once; any other move is asked of Python.

const LAYERS = {
  otherwise: ["Otherwise − really", "the change that the move makes"],
  really: ["Really", "what the step did"],
  carried_over: ["Carried over", "what momentum alone did"],
  rows_did: ["Rows", "what the rows added"],
};
const WHERES = { step: "the step's rows", followed: "followed demonstrations", "held out": "held-out right answers" };
const orZero = (v) => (Number.isNaN(v) ? 0 : v);
const PATIENCE = 4000;  // milliseconds without an answer after which no kernel is supposed

function render({ model, el }) {
  const texts = model.get("texts"), kinds = model.get("kinds"), rows = model.get("rows"), knobs = model.get("knobs"), titles = model.get("titles"), effects = model.get("effects");
  const flat = typed(model.get("base"), Float32Array), count = texts.length;
  const base = Object.fromEntries(["logp", "carried_over", "rows_did", "really", "advantage", "kept"].map((name, i) => [name, flat.subarray(i * count, (i + 1) * count)]));
  const known = new Map(Object.entries(model.get("results")).map(([move, bytes]) => [move, typed(bytes, Float32Array)]));
  const errors = new Map();
  let theme = null, themed = true, hover = -1, turned = JSON.parse(model.get("move")), shown = null, waiting = 0, late = false;
  const view = explorer({ model, el, title: titles.title, label: "Step explorer", changed: () => { themed = true; ask(); } });
  const { root } = view;
  root.classList.add("step");
  const ask = painter(root, () => paint()), send = sender(model);
  const set = (values) => { send(values); ask(); };

  const sorted = (move) => JSON.stringify(Object.fromEntries(Object.entries(move).sort(([a], [b]) => (a < b ? -1 : 1))));
  const key = () => sorted(turned);
  const still = () => Object.keys(turned).length === 0;

  function change(field, value) {
    const own = knobs.find((knob) => knob.field === field)?.own;
    if (value === own || (Array.isArray(value) && !value.length)) delete turned[field]; else turned[field] = value;
    const move = key();
    clearTimeout(waiting);
    late = false;
    if (!known.has(move) && !still()) waiting = setTimeout(() => { late = true; ask(); }, PATIENCE);
    set({ move });
  }

  const dials = knobs.map((knob) => {
    const field = selectField({ label: knob.field, onchange: (i) => change(knob.field, knob.values[i]) });
    field.options(knob.values.map((value, i) => [i, `${value}${value === knob.own ? " (the run)" : ""}`]));
    field.input.disabled = knob.idle !== "";
    if (knob.idle) { field.element.classList.add("idle"); field.element.append(node("span", { class: "why" }, knob.idle)); }
    return { ...field, knob };
  });
  const mute = checkField({ label: "Mute this row", onchange: (on) => {
    const place = rows[model.get("row")].row, others = (turned.without ?? []).filter((one) => one !== place);
    change("without", on ? [...others, place].sort((a, b) => a - b) : others);
  } });
  const flip = checkField({ label: "Give this row the other score", onchange: (on) => {
    const { row, score } = rows[model.get("row")], scores = { ...(turned.scores ?? {}) };
    if (on) scores[row] = 1 - score; else delete scores[row];
    if (Object.keys(scores).length) change("scores", scores); else { delete turned.scores; change("without", turned.without ?? []); }
  } });
  const reset = node("button", { type: "button", onclick: () => { turned = {}; set({ move: "{}" }); } }, "As it was");

  const where = radioField({ label: "Tokens of", options: Object.entries(WHERES).filter(([name]) => rows.some((row) => row.where === name)),
    onchange: (value) => set({ where: value, row: rows.findIndex((row) => row.where === value), cursor: 0 }) });
  const row = selectField({ label: "Row", onchange: (value) => set({ row: Number(value), cursor: 0 }) });
  const layer = radioField({ label: "Colour", options: Object.entries(LAYERS).map(([name, [title]]) => [name, title]), onchange: (value) => set({ layer: value }) });
  const prompt = node("p", { class: "prompt" }), status = node("p", { class: "note readout", role: "status" }), legend = node("p", { class: "note" });
  const text = tokenText({ label: "Token cursor", tallest: 236, ask,
    look, describe: (i) => `token ${i + 1} of ${rows[model.get("row")].count}, ${visible(texts[rows[model.get("row")].start + i])}; ${facts(i).map(([name, value]) => `${name} ${value}`).join(", ")}`,
    pick(i, how) { if (how === "hover") hover = i; else set({ cursor: i }); ask(); } });
  const list = node("dl", { class: "facts" });
  const body = node("tbody"), table = node("table", { "aria-label": "Mean change by group" },
    node("thead", {}, node("tr", {}, ...["nats per token", "really", "carried over", "otherwise"].map((name) => node("th", { scope: "col" }, name)))), body);
  root.append(
    node("p", { class: "note" }, titles.note), node("p", {}, titles.sentence),
    node("div", { class: "split" },
      node("div", { class: "knobs" }, ...dials.map((dial) => dial.element), node("div", {}, mute.element), node("div", {}, flip.element), node("div", {}, reset)),
      node("div", {}, node("div", { class: "bar" }, where.element, row.element), node("div", { class: "bar" }, layer.element), legend, prompt, text.element, status, list, table)),
  );

  let textOf = -1;
  const scales = new Map();
  /** Upper end of a colour scale: 98% of the step's tokens lie below; one per move where the move is shown. */
  function scaleOf(name) {
    const which = name === "otherwise" ? `${name} ${key()} ${shown !== null}` : name;
    if (!scales.has(which)) {
      const all = Array.from({ length: count }, (_, i) => Math.abs(read(name, i))).filter((v) => v > 0).sort((a, b) => a - b);
      scales.set(which, all[Math.floor(0.98 * (all.length - 1))] || 1e-6);
    }
    return scales.get(which);
  }
  const read = (name, i) => (name !== "otherwise" ? base[name][i] : still() || !shown ? NaN : shown[i] - orZero(base.really[i]));
  const layerNow = () => (model.get("layer") === "otherwise" && still() ? "really" : model.get("layer"));
  function look(i) {
    const value = read(layerNow(), rows[model.get("row")].start + i);
    if (Number.isNaN(value)) return {};
    const t = Math.min(Math.abs(value) / scaleOf(layerNow()), 1) ** 0.6;
    return { fill: theme.tint(value > 0 ? OKABE_ITO.blue : OKABE_ITO.vermilion, 0.1 + 0.9 * t), bar: t > 0.05 ? t : 0, dash: value < 0 };
  }
  function facts(i) {
    const at = rows[model.get("row")].start + i, signed = (v) => (Number.isNaN(v) ? "—" : `${v > 0 ? "+" : ""}${number(v)} nats`);
    const out = [["kind", kinds[at].replace("_", "-")], ["probability before", number(Math.exp(base.logp[at]))]];
    if (!Number.isNaN(base.advantage[at])) out.push(["advantage", number(base.advantage[at])]);
    if (kinds[at] === "prefix" && !Number.isNaN(base.kept[at])) out.push(["clip", base.kept[at] ? "kept" : "clipped"]);
    out.push(["carried over", signed(base.carried_over[at])], ["rows", signed(base.rows_did[at])], ["really", signed(base.really[at])]);
    if (!still()) out.push(["otherwise", shown ? signed(shown[at]) : "—"]);
    return out;
  }
  const grouped = () => {
    const groups = new Map();
    for (const one of rows) {
      const name = one.where !== "step" ? WHERES[one.where] : one.score === null ? "trained demonstrations" : one.score === 1 ? "right rows" : "wrong rows";
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(one);
    }
    return groups;
  };
  const groups = grouped();
  const mean = (members, value) => {
    let sum = 0, n = 0;
    for (const { start, count: length } of members) for (let i = start; i < start + length; i++) { const v = value(i); if (!Number.isNaN(v)) { sum += v; n += 1; } }
    return n ? sum / n : NaN;
  };
  function paintTable() {
    const cells = [...groups].map(([name, members]) => [name, mean(members, (i) => orZero(base.really[i])), mean(members, (i) => orZero(base.carried_over[i])), still() || !shown ? NaN : mean(members, (i) => shown[i])]);
    body.replaceChildren(...cells.map(([name, ...numbers]) => node("tr", {}, node("th", { scope: "row" }, name), ...numbers.map((v) => node("td", {}, Number.isNaN(v) ? "—" : `${v > 0 ? "+" : ""}${number(v)}`)))));
  }

  function paint() {
    if (themed) { theme = palette(root); themed = false; }
    const move = key(), now = rows[model.get("row")] ?? rows[0];
    shown = known.get(move) ?? null;
    for (const dial of dials) {
      const value = turned[dial.knob.field] ?? dial.knob.own;
      dial.show(dial.knob.values.indexOf(value));
      dial.element.classList.toggle("turned", dial.knob.field in turned);
    }
    where.show(now.where);
    layer.show(model.get("layer"));
    row.options(rows.flatMap((one, i) => (one.where !== now.where ? [] : [[i, [`${one.row}`, visible(one.problem, false), one.prefix === 0 ? "plain" : one.prefix === one.count ? "demonstration" : "hybrid",
      ...(one.score === null ? [] : [`score ${number(one.score)}`]), ...(one.where === "step" && String(one.row) in effects ? [`held out ${effects[one.row] > 0 ? "+" : ""}${number(effects[one.row])}`] : [])].join(" · ")]])));
    row.show(model.get("row"));
    const own = now.where === "step";
    mute.element.hidden = !own; flip.element.hidden = !own || now.score === null;
    mute.show((turned.without ?? []).includes(now.row));
    flip.show(String(now.row) in (turned.scores ?? {}));
    setText(prompt, now.prompt);
    const name = layerNow();
    setText(legend, `${LAYERS[name][0]}: ${LAYERS[name][1]}; blue and a solid bar: more probable, red and a dashed bar: less; full colour from ±${number(scaleOf(name))} nats; blank: below what float32 reads, or a row that was sampled anew.`);
    const error = errors.get(move);
    setText(status, error ? error : still() || shown ? "" : late ? "No answer: this move was not performed beforehand, and needs a running kernel." : "Performing the step…");
    status.classList.toggle("warning", Boolean(error) || (late && !shown && !still()));
    if (textOf !== now.start) { textOf = now.start; text.tokens(texts.slice(now.start, now.start + now.count), kinds.slice(now.start, now.start + now.count)); hover = -1; }
    const cursor = Math.min(model.get("cursor"), now.count - 1);
    text.paint(theme, { cursor, seam: now.prefix > 0 && now.prefix < now.count ? now.prefix : -1 });
    const lines = facts(hover >= 0 && hover < now.count ? hover : cursor);
    list.replaceChildren(...lines.flatMap(([label, value]) => [node("dt", {}, label), node("dd", {}, value)]));
    paintTable();
  }

  view.on(["where", "row", "layer", "cursor"], ask);
  view.on(["move"], () => { turned = JSON.parse(model.get("move")); ask(); });
  view.on(["answer"], () => {
    const { move, change: bytes, error } = model.get("answer");
    if (!move) return;
    const name = sorted(JSON.parse(move));
    if (error) errors.set(name, error); else known.set(name, typed(bytes, Float32Array));
    if (name === key()) clearTimeout(waiting);
    root.dispatchEvent(new CustomEvent("explorer:answer", { detail: name }));
    ask();
  });
  ask();
  return () => { clearTimeout(waiting); ask.cancel(); send.cancel(); view.dispose(); };
}

export default { render };
