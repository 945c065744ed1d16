"""Time and memory of the step by length, drawn."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from bench.rounds import Json

COLOURS = {"fast": "#1a7f5a", "plain": "#b5482f"}
LABELS = {"fast": "sgl-spec", "plain": "plain: dense masks, whole logits"}


def draw(growth: Json, path: Path) -> None:
    """Two panels, both axes logarithmic; a line grows with its slope."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, key, scale, title in (
        (panels[0], "seconds", 1, "seconds a step"),
        (panels[1], "memory", 2**30, "peak memory above what is loaded, GiB"),
    ):
        for name in COLOURS:
            points = {
                int(length): its["contenders"][name][key]
                for length, its in growth["lengths"].items()
                if name in its["contenders"]
            }
            medians = [value["median"] / scale for value in points.values()]
            panel.plot(list(points), medians, "o-", color=COLOURS[name], label=LABELS[name])
            least, most = ([value[end] / scale for value in points.values()] for end in ("least", "most"))
            panel.fill_between(list(points), least, most, color=COLOURS[name], alpha=0.15)
        panel.set(xscale="log", yscale="log", title=title, xlabel="tokens a row, two rows")
        panel.set_xticks([int(length) for length in growth["lengths"]], list(growth["lengths"]))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
