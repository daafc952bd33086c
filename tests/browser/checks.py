"""What must hold of every explorer on a page: names for assistive technology, and text that can be read."""

from __future__ import annotations

from typing import Any

_NAMELESS = """() => [...document.querySelectorAll(".prefix-explorer")].flatMap((root) =>
  [...root.querySelectorAll("input, select, button, textarea, summary, [tabindex]")]
    .filter((e) => !(e.getAttribute("aria-label") ?? (e.labels?.length ? e.labels[0] : e).textContent).trim() || e.getAttribute("data-lm-suppress-shortcuts") !== "true")
    .map((e) => e.outerHTML.slice(0, 120)))"""

_FAINT = """() => {
  const parts = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
  const luminance = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4)); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (let at = e; at; at = at.parentElement) { const c = parts(getComputedStyle(at).backgroundColor); if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
  return [...document.querySelectorAll(".prefix-explorer *")].flatMap((e) => {
    const text = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join("");
    if (!text || !e.checkVisibility() || e.tagName === "OPTION") return [];
    const [a, b] = [luminance(parts(getComputedStyle(e).color)), luminance(behind(e))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return contrast < 4.5 ? [`${contrast.toFixed(2)}: ${text.slice(0, 40)}`] : [];
  });
}"""


def nameless(page: Any) -> list[str]:
    """Controls without a name, or whose keys JupyterLab would take."""
    return page.evaluate(_NAMELESS)


def faint(page: Any) -> list[str]:
    """Texts with less contrast to what is behind them than WCAG AA asks for."""
    return page.evaluate(_FAINT)
