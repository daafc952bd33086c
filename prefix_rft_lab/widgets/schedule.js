// Schedule scrubber. Everything it needs comes in once; scrubbing never waits for Python.
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 640, HEIGHT = 190, LEFT = 44, RIGHT = 12, TOP = 12, BOTTOM = 34;

function svg(name, attributes, parent) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.appendChild(node);
  return node;
}

function html(name, className, parent) {
  const node = document.createElement(name);
  if (className) node.className = className;
  parent.appendChild(node);
  return node;
}

// Model text is hostile text: it only ever becomes textContent.
const visible = (text) => text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥") || "∅";

function render({ model, el }) {
  const root = html("div", "prefix-schedule", el);
  const windows = model.get("window"), lengths = model.get("lengths"), tokens = model.get("tokens");
  const last = windows.length - 1;
  const x = (step) => LEFT + ((WIDTH - LEFT - RIGHT) * step) / Math.max(last, 1);
  const y = (ratio) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - ratio);

  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "Prefix-ratio window over training steps" }, root);
  for (const ratio of [0, 0.25, 0.5, 0.75, 1]) {
    svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(ratio), y2: y(ratio), class: "grid" }, chart);
    svg("text", { x: LEFT - 6, y: y(ratio) + 4, class: "tick", "text-anchor": "end" }, chart).textContent = ratio;
  }
  const upper = windows.map((w, i) => `${x(i)},${y(w[2])}`), lower = windows.map((w, i) => `${x(i)},${y(w[0])}`);
  svg("polygon", { points: [...upper, ...lower.reverse()].join(" "), class: "band" }, chart);
  svg("polyline", { points: windows.map((w, i) => `${x(i)},${y(w[1])}`).join(" "), class: "mean" }, chart);
  const marker = svg("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "marker" }, chart);
  svg("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 4, class: "tick", "text-anchor": "middle" }, chart).textContent = "step";
  for (const step of [0, Math.round(last / 2), last])
    svg("text", { x: x(step), y: HEIGHT - BOTTOM + 15, class: "tick", "text-anchor": "middle" }, chart).textContent = step;
  const middleY = y(0.5);
  svg("text", { x: 12, y: middleY, class: "tick", "text-anchor": "middle", transform: `rotate(-90 12 ${middleY})` }, chart).textContent = "prefix ratio";

  const label = html("label", "control", root);
  html("span", "", label).textContent = "Training step";
  const slider = html("input", "", label);
  Object.assign(slider, { type: "range", min: 0, max: last, step: 1 });
  // Otherwise JupyterLab takes the arrow keys for moving between cells; it asks the focused element itself.
  slider.setAttribute("data-lm-suppress-shortcuts", "true");
  const readout = html("output", "", label);

  const legend = html("p", "legend", root);
  for (const [kind, text] of [["prefix", "prefix, given"], ["maybe", "inside the window: given or not"], ["own", "continued by the policy"]]) {
    html("span", `swatch ${kind}`, legend);
    html("span", "", legend).textContent = ` ${text}   `;
  }
  const line = html("p", "demonstration", root);
  line.setAttribute("aria-label", "One demonstration, split at this step");
  const spans = tokens.map((text) => {
    const span = html("span", "token", line);
    span.textContent = visible(text);
    return span;
  });

  let frame = 0, timer = 0;
  function paint() {
    frame = 0;
    const step = Math.min(Math.max(model.get("step"), 0), last);
    const [low, mean, high] = windows[step], [shortest, middle, longest] = lengths[step];
    marker.setAttribute("x1", x(step));
    marker.setAttribute("x2", x(step));
    if (Number(slider.value) !== step) slider.value = step;
    const text = `step ${step}: ratio ${low.toFixed(2)} to ${high.toFixed(2)}, mean ${mean.toFixed(2)}; prefix ${shortest} to ${longest} of ${tokens.length} tokens, at the mean ${middle}`;
    readout.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    spans.forEach((span, i) => {
      span.className = `token ${i < shortest ? "prefix" : i < longest ? "maybe" : "own"}${i === middle ? " seam" : ""}`;
    });
  }
  const schedule = () => { frame ||= requestAnimationFrame(paint); };
  slider.addEventListener("input", () => {
    model.set("step", Number(slider.value));
    schedule();
    // Python hears of it about ten times a second; the picture does not wait.
    timer ||= setTimeout(() => { timer = 0; model.save_changes(); }, 100);
  });
  model.on("change:step", schedule);
  paint();
  return () => { cancelAnimationFrame(frame); clearTimeout(timer); model.off("change:step", schedule); };
}

export default { render };
