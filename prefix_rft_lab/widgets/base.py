"""What the explorers share: one self-contained script each, and a picture and a text for readers without it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import anywidget

from prefix_rft_lab.plots import RunFigure

_FOLDER = Path(__file__).parent


def script(name: str) -> str:
    """The ESM of a widget: shared helpers, then its own file. A stored widget can import nothing."""
    return "\n".join((_FOLDER / f"{part}.js").read_text(encoding="utf-8") for part in ("common", name))


def style(name: str) -> str:
    """The style sheet of a widget, shared rules first."""
    return "\n".join((_FOLDER / f"{part}.css").read_text(encoding="utf-8") for part in ("common", name))


class Explorer(anywidget.AnyWidget):
    """A view that lives in the browser: its data go there once, and interaction never waits for Python."""

    def summary(self) -> str:
        """What the view shows, as text for readers without it."""
        raise NotImplementedError

    def picture(self) -> RunFigure:
        """What the view shows, as a figure for readers without it."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live view, with a picture and a text for GitHub, converters and untrusted notebooks."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        figure = self.picture()
        size = {"width": round(figure.get_figwidth() * 72), "alt": figure.caption}
        data = {**data, "image/png": base64.b64encode(figure.png(dpi=110)).decode(), "text/plain": self.summary()}
        return data, {**metadata, "image/png": size}
