"""A widget in a page of its own, without Jupyter: the real script against a model that keeps values in the page."""

from __future__ import annotations

import base64
from typing import Any

ADDRESS = "http://127.0.0.1:9/"
"""Nothing listens here: the page answers its own requests."""

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>explorer</title><style>
body { margin: 12px; background: #fff; font-family: "DejaVu Sans", sans-serif; --jp-code-font-family: "DejaVu Sans Mono", monospace; }
body.dark { background: #111; --jp-layout-color0: #111111; --jp-content-font-color0: #f0f0f0; }
</style></head><body><main id="view"></main></body></html>"""

_START = """async ({ esm, css, state }) => {
  const style = document.createElement("style");
  style.textContent = css;
  document.head.append(style);
  const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const revive = (value) => Array.isArray(value) ? value.map(revive) : value && typeof value === "object"
    ? ("$bytes" in value ? bytes(value.$bytes) : Object.fromEntries(Object.entries(value).map(([k, v]) => [k, revive(v)]))) : value;
  const values = revive(state), handlers = {}, saved = [];
  let dirty = {};
  const fire = (name) => [...(handlers[`change:${name}`] ?? [])].forEach((handler) => handler());
  window.model = {
    get: (name) => values[name],
    set(name, value) { if (values[name] !== value) { values[name] = value; dirty[name] = value; fire(name); } },
    on(event, handler) { (handlers[event] ??= []).push(handler); },
    off(event, handler) { handlers[event] = (handlers[event] ?? []).filter((one) => one !== handler); },
    save_changes() { saved.push(dirty); dirty = {}; },
    handlers, saved,
  };
  window.paints = [];
  const el = document.getElementById("view");
  el.addEventListener("explorer:paint", (event) => window.paints.push(event.detail), true);
  window.module = await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));
  window.dispose = await window.module.default.render({ model: window.model, el });
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
}"""


def plain(value: Any) -> Any:
    """A trait's value as JSON can carry it."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def show(page: Any, widget: Any, *, dark: bool = False) -> None:
    """Open the page and render the widget in it; ``window.model``, ``window.paints`` and ``window.module`` are there."""
    page.route(f"{ADDRESS}**", lambda route: route.fulfill(body=_PAGE, content_type="text/html"))
    page.goto(ADDRESS)
    if dark:
        page.evaluate("document.body.classList.add('dark')")
    state = {name: plain(value) for name, value in widget.get_state().items() if not name.startswith("_")}
    page.evaluate(_START, {"esm": widget._esm, "css": widget._css, "state": state})
