// Shared by the explorers. Python puts this text before each widget's own: a stored widget's module stands alone.
// Notebooks load the style sheets of all explorers together, so a widget's own rules must be more specific than common ones.
// Model text is hostile text: it becomes a text node, an attribute's value or canvas glyphs, never markup.

const OKABE_ITO = {
  black: "#000000", orange: "#e69f00", sky: "#56b4e9", green: "#009e73",
  yellow: "#f0e442", blue: "#0072b2", vermilion: "#d55e00", purple: "#cc79a7", grey: "#8a8a8a",
};
// Nine samples of cividis (Nunez, Anderton and Renslow, 2018).
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#fee838"].map(channels);
const DASHES = { prefix: [1.5, 2.5], continuation: [5, 2.5], on_policy: [] };

// ---------------------------------------------------------------------- elements

const FOCUSABLE = new Set(["input", "select", "button", "textarea", "summary"]);

function node(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  // JupyterLab asks the focused element itself whether its shortcuts may have the keys.
  if (FOCUSABLE.has(name) || "tabindex" in attributes) made.setAttribute("data-lm-suppress-shortcuts", "true");
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };

function rangeField({ label, min, max, step = 1, oninput }) {
  const input = node("input", { type: "range", min, max, step, "aria-label": label, oninput: () => oninput(Number(input.value)) });
  const output = node("output", {});
  return {
    input,
    element: node("label", { class: "field wide" }, node("span", { class: "name" }, label), input, output),
    show(value, text) {
      if (Number(input.value) !== value) input.value = value;
      input.setAttribute("aria-valuetext", text);
      setText(output, text);
    },
  };
}

function selectField({ label, onchange }) {
  const input = node("select", { "aria-label": label, onchange: () => onchange(input.value) });
  let shown = "";
  return {
    input,
    element: node("label", { class: "field" }, node("span", { class: "name" }, label), input),
    /** options: [value, text] pairs, or {group: pairs}. */
    options(options) {
      const key = JSON.stringify(options);
      if (key === shown) return;
      shown = key;
      const make = (pairs) => pairs.map(([value, text]) => node("option", { value }, text));
      input.replaceChildren(...(Array.isArray(options) ? make(options)
        : Object.entries(options).map(([group, pairs]) => node("optgroup", { label: group }, ...make(pairs)))));
    },
    show(value) { if (input.value !== String(value)) input.value = value; },
  };
}

function checkField({ label, checked = false, sample = null, onchange }) {
  const input = node("input", { type: "checkbox", "aria-label": label, onchange: () => onchange(input.checked) });
  input.checked = checked;
  return { input, element: node("label", { class: "check" }, input, sample, label), show(value) { input.checked = value; } };
}

let groups = 0;
function radioField({ label, options, onchange }) {
  const name = `explorer-radio-${groups++}-${Math.random().toString(36).slice(2)}`;
  const inputs = options.map(([value]) => node("input", { type: "radio", name, value, onchange: () => onchange(value) }));
  return {
    element: node("fieldset", { class: "radio", role: "radiogroup", "aria-label": label }, node("legend", {}, label),
      ...options.map(([, text], i) => node("label", { class: "check" }, inputs[i], text))),
    show(value) { for (const input of inputs) input.checked = input.value === String(value); },
  };
}

// ---------------------------------------------------------------------- model and frames

/** Ask for one paint in the next frame, however often it is called; says how long each paint took. */
function painter(root, paint) {
  let frame = 0;
  const run = () => {
    frame = 0;
    const start = performance.now();
    paint();
    root.dispatchEvent(new CustomEvent("explorer:paint", { detail: performance.now() - start }));
  };
  const ask = () => { frame ||= requestAnimationFrame(run); };
  ask.cancel = () => cancelAnimationFrame(frame);
  return ask;
}

/** Set traits at once and tell Python about ten times a second: the picture does not wait. */
function sender(model) {
  let timer = 0;
  const send = (values) => {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    timer ||= setTimeout(() => { timer = 0; model.save_changes(); }, 100);
  };
  send.cancel = () => clearTimeout(timer);
  return send;
}

/** Hide the picture that Python displays above the view for readers without it; gives a function that shows it again. */
function hideStill(el, [width, height]) {
  const before = el.closest(".jp-OutputArea-child")?.previousElementSibling, image = before?.querySelector(".jp-RenderedImage img");
  if (!image || Number(image.getAttribute("width")) !== width || Number(image.getAttribute("height")) !== height) return null;
  before.style.display = "none";
  return () => { before.style.display = ""; };
}

/** The card that an explorer lives in: follows JupyterLab's theme and its own width. */
function explorer({ model, el, title, label, changed }) {
  const root = node("section", { class: "prefix-explorer", role: "group", "aria-label": label }, node("h3", {}, title));
  el.append(root);
  const theme = () => {
    root.classList.toggle("dark", luminance(getComputedStyle(root).backgroundColor) < 0.2);
    changed();
  };
  const watch = new MutationObserver(() => requestAnimationFrame(theme));
  watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
  let showStill = null, width = -1;
  const size = new ResizeObserver(([{ contentRect }]) => {
    showStill ??= hideStill(el, model.get("still"));
    // A text that takes another line changes the height alone.
    if (contentRect.width !== width) { width = contentRect.width; theme(); }
  });
  size.observe(root);
  const handlers = [];
  return {
    root,
    on(names, handler) {
      for (const name of names) { model.on(`change:${name}`, handler); handlers.push([`change:${name}`, handler]); }
    },
    dispose() {
      watch.disconnect();
      size.disconnect();
      showStill?.();
      for (const [name, handler] of handlers) model.off(name, handler);
    },
  };
}

// ---------------------------------------------------------------------- colour

function channels(colour) {
  const hex = /^#(..)(..)(..)$/.exec(colour);
  return hex ? hex.slice(1).map((part) => parseInt(part, 16)) : (colour.match(/[\d.]+/g) ?? [255, 255, 255]).slice(0, 3).map(Number);
}

/** Relative luminance of a CSS colour (WCAG), 0 to 1. */
function luminance(colour) {
  const [r, g, b] = (Array.isArray(colour) ? colour : channels(colour))
    .map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

const mix = (a, b, share) => a.map((value, i) => value + (b[i] - value) * share);
const rgb = (parts) => `rgb(${parts.map(Math.round).join(",")})`;
const inkOn = (parts) => (luminance(parts) > 0.18 ? "#111111" : "#ffffff");

/** Cividis at t in [0, 1]. */
function cividis(t) {
  const place = Math.min(Math.max(t, 0), 1) * (CIVIDIS.length - 1), i = Math.min(Math.floor(place), CIVIDIS.length - 2);
  return mix(CIVIDIS[i], CIVIDIS[i + 1], place - i);
}

/** What canvases paint with, from the theme. */
function palette(root) {
  const style = getComputedStyle(root), dark = root.classList.contains("dark");
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    dark, paper: channels(style.backgroundColor), ink: style.color, muted: read("--muted"), line: read("--line"),
    accent: read("--accent"), mark: read("--mark"),
    ui: style.fontFamily, code: read("--jp-code-font-family") || "monospace",
    // High values stand out from the page: dark on light, bright on dark; low ones sink into it.
    heat(t) { return mix(this.paper, cividis(dark ? t : 1 - t), 0.1 + 0.9 * Math.min(t * 2.2, 1)); },
    tint(colour, share) { return mix(this.paper, channels(colour), share * (dark ? 0.75 : 0.6)); },
  };
}

// ---------------------------------------------------------------------- canvas

/** The element's inner width without asking for a layout, which in a notebook is one of the whole page. */
function widthOf(element, changed = () => {}) {
  let width = 0;
  new ResizeObserver(([entry]) => { width = entry.contentRect.width; changed(); }).observe(element);
  return () => width || element.clientWidth;
}

/** A canvas that follows its element's width and the screen's density. */
function drawing({ label, height, className = "chart" }) {
  const canvas = node("canvas", { class: className, role: "img", "aria-label": label });
  const context = canvas.getContext("2d");
  canvas.style.height = `${height}px`;
  const inner = widthOf(canvas);
  return {
    canvas, context,
    /** Clears; returns width and height in CSS pixels. */
    begin() {
      const width = Math.max(inner(), 1), ratio = devicePixelRatio || 1;
      const tall = Number.parseFloat(canvas.style.height);
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(tall * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(tall * ratio);
      }
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, tall);
      return { width, height: tall };
    },
  };
}

/** A canvas under a chart for what a step does not change: copying it every frame would cost more than it saves. */
function layer(height) {
  const canvas = node("canvas", { class: "still", "aria-hidden": "true" });
  canvas.style.height = `${height}px`;
  return { canvas, context: canvas.getContext("2d") };
}

function line(context, points, { colour, width = 1, dash = [] }) {
  context.beginPath();
  let down = false;
  for (const [x, y] of points) {
    if (Number.isNaN(y)) down = false;
    else if (down) context.lineTo(x, y);
    else { context.moveTo(x, y); down = true; }
  }
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.setLineDash(dash);
  context.lineJoin = "round";
  context.stroke();
  context.setLineDash([]);
}

/** Round numbers from low to high, about `count` of them. */
function ticks(low, high, count = 5) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
  const out = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) out.push(Number(value.toPrecision(12)));
  return out;
}

/** Grid, ticks and axis names. box: {left, top, right, bottom} in pixels; x, y: value -> pixel. */
function axes(context, theme, box, { x, y, xTicks, yTicks, xName, yName, yText = String, xText = String }) {
  context.font = `11px ${theme.ui}`;
  context.lineWidth = 1;
  context.strokeStyle = theme.line;
  context.fillStyle = theme.muted;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const tick of yTicks) {
    const at = Math.round(y(tick)) + 0.5;
    context.beginPath(); context.moveTo(box.left, at); context.lineTo(box.right, at); context.stroke();
    context.fillText(yText(tick), box.left - 6, at);
  }
  context.textBaseline = "top";
  context.textAlign = "center";
  for (const tick of xTicks) {
    const at = Math.round(x(tick)) + 0.5;
    context.beginPath(); context.moveTo(at, box.bottom); context.lineTo(at, box.bottom + 4); context.stroke();
    context.fillText(xText(tick), at, box.bottom + 7);
  }
  if (xName) context.fillText(xName, (box.left + box.right) / 2, box.bottom + 22);
  if (yName) {
    context.save();
    context.translate(11, (box.top + box.bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.textBaseline = "middle";
    context.fillText(yName, 0, 0);
    context.restore();
  }
}

/** Call `move(x, y)` in CSS pixels while the pointer drags on the element, `start` first; a false start drags nothing. */
function drag(element, { start, move, end = () => {} }) {
  const place = (event) => {
    const box = element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  let active = false;
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    active = start(...place(event)) !== false;
    if (!active) return;
    element.setPointerCapture(event.pointerId);
    move(...place(event));
    event.preventDefault();
  });
  element.addEventListener("pointermove", (event) => { if (active) move(...place(event)); });
  for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, () => { if (active) { active = false; end(); } });
}

// ---------------------------------------------------------------------- text and numbers

const number = (value, digits = 3) => (value === null || value === undefined || Number.isNaN(value) ? "—"
  : Number.isInteger(value) && Math.abs(value) < 1e6 ? String(value)
    : Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 10 ** -digits) ? value.toExponential(1)
      : value.toFixed(Math.max(0, digits - Math.max(0, Math.floor(Math.log10(Math.abs(value) || 1))))));
const percent = (value) => (Number.isNaN(value) ? "—" : `${(100 * value).toFixed(0)}%`);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

const MARKS = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u007f": "␡" };
// Controls, and format characters that hide or reorder what is beside them.
const UNSEEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** A token's text on one line, with what cannot be seen made visible; spaces only if asked for. */
function visible(text, spaces = true) {
  if (text === "") return "∅";
  const shown = (spaces ? text.replaceAll(" ", "·") : text).replace(UNSEEN, (c) => MARKS[c]
    ?? (c < " " ? String.fromCodePoint(0x2400 + c.charCodeAt(0)) : `‹${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}›`));
  return shown.length > 120 ? `${shown.slice(0, 119)}…` : shown;
}

/** float16 bits -> number, as a table. */
const HALVES = (() => {
  let table = null;
  return () => {
    if (table) return table;
    table = new Float32Array(65536);
    for (let bits = 0; bits < 65536; bits++) {
      const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
      table[bits] = sign * (exponent === 31 ? (fraction ? NaN : Infinity)
        : exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
    }
    return table;
  };
})();

/** A binary trait (little endian) as a typed array. */
function typed(view, Type) {
  if (!view || !view.byteLength) return new Type(0);
  const start = view.byteOffset ?? 0;
  if (start % Type.BYTES_PER_ELEMENT) return new Type(view.buffer.slice(start, start + view.byteLength));
  return new Type(view.buffer, start, view.byteLength / Type.BYTES_PER_ELEMENT);
}

// ---------------------------------------------------------------------- tokens as text

const LINE = 26, GLYPH = 13, PAD = 3;

/**
 * Tokens as readable text on a canvas that draws only what is in view, with a cursor for mouse, keyboard and screen readers.
 *
 * look(i) -> {fill: [r, g, b] | null, bar: 0..1, dash: bool, ring: bool}; describe(i) -> what assistive technology says;
 * pick(i, how) is called with how = "cursor" or "hover" (-1 when the pointer leaves).
 */
function tokenText({ label, tallest = 260, ask, look, describe, pick }) {
  const { canvas, context, begin } = drawing({ label, height: 100, className: "glyphs" });
  canvas.removeAttribute("role");
  canvas.setAttribute("aria-hidden", "true");
  const sheet = node("div", { class: "sheet" }, canvas);
  const port = node("div", { class: "tokens", tabindex: 0, role: "slider", "aria-label": label, "aria-valuemin": 1 }, sheet);
  const widths = new Map(), shown = new Map(), inner = widthOf(port, ask);
  let scrolled = 0;
  let texts = [], kinds = null, spaces = true, seam = -1, cursor = 0, hovered = -1, font = "", laidOut = "";
  let xs = new Float32Array(0), lines = new Uint32Array(0), wide = new Float32Array(0), starts = [0];

  const width = (text) => {
    let known = widths.get(text);
    if (known === undefined) widths.set(text, known = context.measureText(text).width + 2 * PAD);
    return known;
  };
  const display = (text) => {
    let known = shown.get(text);
    if (known === undefined) shown.set(text, known = visible(text, spaces));
    return known;
  };
  function layout(room) {
    const count = texts.length;
    xs = new Float32Array(count); wide = new Float32Array(count); lines = new Uint32Array(count);
    starts = [0];
    let x = 0, row = 0;
    const next = (i) => { x = 0; row += 1; starts.push(i); };
    for (let i = 0; i < count; i++) {
      const w = Math.min(width(display(texts[i])), room);
      if (x > 0 && x + w > room) next(i);
      xs[i] = x; wide[i] = w; lines[i] = row;
      x += w;
      if (texts[i].includes("\n") && i + 1 < count) next(i + 1);
    }
  }
  function describeCursor() {
    port.setAttribute("aria-valuemax", Math.max(texts.length, 1));
    port.setAttribute("aria-valuenow", Math.min(cursor + 1, Math.max(texts.length, 1)));
    port.setAttribute("aria-valuetext", texts.length ? describe(cursor) : "no tokens");
  }
  function at(x, y) {
    const row = Math.floor((y + port.scrollTop) / LINE);
    if (row < 0 || row >= starts.length) return -1;
    const end = starts[row + 1] ?? texts.length;
    for (let i = starts[row]; i < end; i++) if (x >= xs[i] && x < xs[i] + wide[i]) return i;
    return -1;
  }
  function reveal(i = cursor) {
    const top = (lines[Math.min(i, texts.length - 1)] ?? 0) * LINE;
    if (top < port.scrollTop) port.scrollTop = top;
    else if (top + LINE > port.scrollTop + port.clientHeight) port.scrollTop = top + LINE - port.clientHeight;
  }
  function vertical(by) {
    const row = Math.min(Math.max(lines[cursor] + by, 0), starts.length - 1), middle = xs[cursor] + wide[cursor] / 2;
    const end = starts[row + 1] ?? texts.length;
    let best = starts[row];
    for (let i = starts[row]; i < end; i++) if (Math.abs(xs[i] + wide[i] / 2 - middle) < Math.abs(xs[best] + wide[best] / 2 - middle)) best = i;
    return best;
  }
  const moves = {
    ArrowLeft: () => cursor - 1, ArrowRight: () => cursor + 1, ArrowUp: () => vertical(-1), ArrowDown: () => vertical(1),
    PageUp: () => vertical(-8), PageDown: () => vertical(8), Home: () => 0, End: () => texts.length - 1,
  };
  port.addEventListener("keydown", (event) => {
    if (!(event.key in moves) || event.altKey || event.metaKey || event.ctrlKey || !texts.length) return;
    event.preventDefault();
    event.stopPropagation();
    hovered = -1;
    pick(Math.min(Math.max(moves[event.key](), 0), texts.length - 1), "cursor");
    reveal();
  });
  const inside = (event) => { const box = port.getBoundingClientRect(); return at(event.clientX - box.left - 1, event.clientY - box.top - 1); };
  port.addEventListener("pointermove", (event) => { const i = inside(event); if (i !== hovered) { hovered = i; pick(i, "hover"); } });
  port.addEventListener("pointerleave", () => { if (hovered !== -1) { hovered = -1; pick(-1, "hover"); } });
  port.addEventListener("click", (event) => { const i = inside(event); if (i >= 0) { hovered = -1; pick(i, "cursor"); } });
  port.addEventListener("scroll", () => { scrolled = port.scrollTop; ask(); });
  for (const name of ["focus", "blur"]) port.addEventListener(name, ask);

  return {
    element: port,
    get count() { return texts.length; },
    /** kinds: names of token kinds, for the line above each; or null. */
    tokens(newTexts, newKinds = null) { texts = newTexts; kinds = newKinds; laidOut = ""; },
    paint(theme, { cursor: newCursor, spaces: newSpaces = true, seam: newSeam = -1 }) {
      cursor = Math.min(Math.max(newCursor, 0), Math.max(texts.length - 1, 0));
      seam = newSeam;
      if (spaces !== newSpaces) { spaces = newSpaces; shown.clear(); laidOut = ""; }
      const wanted = `${GLYPH}px ${theme.code}`, room = Math.max(inner() - 4, 40);
      if (font !== wanted) { font = wanted; widths.clear(); laidOut = ""; }
      context.font = font;
      if (laidOut !== String(room)) {
        layout(room);
        laidOut = String(room);
        const height = Math.max(starts.length, 1) * LINE;
        sheet.style.height = `${height}px`;
        canvas.style.height = `${Math.min(height, tallest)}px`;
        port.style.height = `${Math.min(height, tallest) + 2}px`;
      }
      const { height } = begin();
      context.font = font;
      context.textBaseline = "middle";
      context.textAlign = "left";
      const top = scrolled, first = Math.max(Math.floor(top / LINE), 0);
      const last = Math.min(Math.ceil((top + height) / LINE), starts.length);
      const focused = document.activeElement === port || port.getRootNode().activeElement === port;
      for (let i = starts[first] ?? 0, end = starts[last] ?? texts.length; i < end; i++) {
        const x = xs[i], y = lines[i] * LINE - top, w = wide[i], { fill, bar = 0, dash = false, ring = false } = look(i);
        if (fill) { context.fillStyle = rgb(fill); context.fillRect(x + 0.5, y + 4, w - 1, 17); }
        context.fillStyle = fill ? inkOn(fill) : theme.ink;
        context.fillText(display(texts[i]), x + PAD, y + 13, w - 2 * PAD + 0.5);
        if (bar > 0) {
          // The same value once more as a bar: colour never carries it alone.
          const thick = 1 + 3 * Math.min(bar, 1);
          if (dash) line(context, [[x + 1.5, y + 23.5], [x + w - 1.5, y + 23.5]], { colour: theme.ink, width: thick, dash: [2, 2] });
          else { context.fillStyle = theme.ink; context.fillRect(x + 1, y + 25.5 - thick, w - 2, thick); }
        }
        if (kinds && DASHES[kinds[i]].length) line(context, [[x + 0.5, y + 2.5], [x + w - 0.5, y + 2.5]], { colour: theme.muted, width: 1.25, dash: DASHES[kinds[i]] });
        if (ring) { context.strokeStyle = theme.ink; context.lineWidth = 1; context.strokeRect(x + 1, y + 4.5, w - 2, 16); }
        if (i === seam) { context.fillStyle = theme.mark; const left = Math.max(x - 1.5, 0); context.fillRect(left, y + 1, 3, 24); context.fillRect(left, y + 1, 8, 3); }
        if (i === hovered || i === cursor) {
          context.strokeStyle = i === hovered ? theme.ink : theme.accent;
          context.lineWidth = i === cursor && focused ? 2.5 : 1.5;
          context.strokeRect(x + 0.5, y + 3.5, w - 1, 18);
        }
      }
      describeCursor();
    },
    reveal,
  };
}
