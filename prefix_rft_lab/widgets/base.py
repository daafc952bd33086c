"""What the explorers share: one self-contained script each, and a picture and a text for readers without it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import anywidget
import traitlets

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

    still: traitlets.List = traitlets.List([0, 0], help="size of the picture above the view, pixels").tag(sync=True)

    def _ipython_display_(self) -> None:
        """Show the picture, then the view, which hides it while it is alive.

        A notebook front end asked for both at once shows "Loading widget..." where there is no kernel, and converters
        that find the widget's state load its scripts from elsewhere; a picture of its own is there in any case.
        """
        from IPython.display import display

        png, size = self._png()
        self.still = [size["width"], size["height"]]
        display({"image/png": png, "text/plain": "(picture of the view below)"}, metadata={"image/png": size}, raw=True)
        view = super()._repr_mimebundle_()
        if view is not None:
            data, metadata = view if isinstance(view, tuple) else (view, {})
            display({**data, "text/plain": self.summary()}, metadata=metadata, raw=True)

    def _png(self) -> tuple[str, dict[str, Any]]:
        """The picture in base64, and how it is shown: drawn larger, so that it stays sharp on dense screens."""
        figure = self.picture()
        width, height = (round(inches * 72) for inches in figure.get_size_inches())
        return base64.b64encode(figure.png(dpi=110)).decode(), {"width": width, "height": height, "alt": figure.caption}

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live view with a picture and a text, in one output, for displays other than :func:`IPython.display.display`."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        png, size = self._png()
        return {**data, "image/png": png, "text/plain": self.summary()}, {**metadata, "image/png": size}
