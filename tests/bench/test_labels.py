"""bench/labels.py: labels hide neither marks nor each other, where there is room for it."""

from __future__ import annotations

from itertools import combinations

from matplotlib.figure import Figure

from feddiff.bench.labels import Labels


def test_labels_of_crowded_marks_stand_clear() -> None:
    figure = Figure((6, 4))
    axes = figure.subplots()
    points = [(0.50, 0.5), (0.53, 0.5), (0.50, 0.56), (0.9, 0.1)]
    axes.plot(*zip(*points, strict=True), "o")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    figure.draw_without_rendering()
    labels = Labels(axes)
    labels.keep_clear(points)
    for number, (x, y) in enumerate(points):
        labels.near(str(number), x, y, fontsize=8)
    labels.along("a level", 0.5, fontsize=8)
    assert sorted(each.get_text() for each in axes.texts) == ["0", "1", "2", "3", "a level"]
    boxes = [each.get_window_extent() for each in axes.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    marks = axes.transData.transform(points)
    assert not any(box.contains(x, y) for box in boxes for x, y in marks)
