"""Where the labels of a chart stand so that they hide neither its marks nor each other.

After everything else is drawn and the limits are final: matplotlib places labels where it is told, and marks of a sweep
crowd. Greedy, each label takes the first of a few places that is free, or else the least taken one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]
"""Left, bottom, right, top; pixels."""
AROUND = ((6, 5, "left", "bottom"), (6, -5, "left", "top"), (-6, 5, "right", "bottom"), (-6, -5, "right", "top"))
"""Of a mark: points to the right and up, and which corner of the text is there."""
MARK = 5.0
"""Half of a mark's side, in points."""


@dataclass
class Labels:
    """Those of one panel. ``draw_without_rendering`` of its figure comes before."""

    axes: Axes
    taken: list[Box] = field(default_factory=list)

    def keep_clear(self, points: Iterable[tuple[float, float]]) -> None:
        """Marks at these places, in the data's units."""
        reach = MARK * self._scale
        for x, y in self.axes.transData.transform(list(points)):
            self.taken.append((x - reach, y - reach, x + reach, y + reach))

    def near(self, text: str, x: float, y: float, **style: Any) -> None:
        """A label beside a mark at a place in the data's units."""
        texts = [
            self.axes.annotate(text, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, **style)
            for dx, dy, ha, va in AROUND
        ]
        self._choose(texts)

    def along(self, text: str, y: float, **style: Any) -> None:
        """A label on a level line."""
        place = {"transform": self.axes.get_yaxis_transform(), **style}
        texts = [
            self.axes.text(x, y, text, ha=ha, va=va, **place)
            for va in ("bottom", "top")
            for x, ha in ((0.01, "left"), (0.99, "right"), (0.35, "center"), (0.65, "center"))
        ]
        self._choose(texts)

    def _choose(self, texts: Sequence[Any]) -> None:
        """Keep the text that hides least, the earliest of equals; take the others away."""
        boxes = [tuple(each.get_window_extent().extents) for each in texts]
        best = min(range(len(boxes)), key=lambda at: sum(_shared(boxes[at], each) for each in self.taken))
        self.taken.append(boxes[best])
        for at, each in enumerate(texts):
            if at != best:
                each.remove()

    @property
    def _scale(self) -> float:
        """Pixels of a point."""
        figure = self.axes.get_figure(root=True)
        assert figure is not None
        return figure.dpi / 72


def _shared(one: Box, other: Box) -> float:
    """The area that two boxes have in common."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
