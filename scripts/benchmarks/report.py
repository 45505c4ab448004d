"""A result as people read it, as JSON, and as a picture."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts.benchmarks.contest import Comparison, Result, Target

_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")),
    "B": ((float(1 << 20), "MiB"), (float(1 << 10), "KiB"), (1.0, "B")),
    "1/s": ((1.0, "/s"),),
}
# The share of the processors that may be in use by others.
BUSY = 0.1


@dataclass
class Report:
    """All that is known after a measurement.

    Attributes:
        machine: As :func:`scripts.benchmarks.machine.describe` returns it.
        mode: How much work there was.
        results: What came of each row.
    """

    machine: Mapping[str, Any]
    mode: str
    results: list[Result]

    def encode(self) -> str:
        """Return it as JSON, for :meth:`decode`."""
        rows = []
        for result in self.results:
            row = asdict(result)
            row["medians"] = {name: result.median(name) for name in result.samples}
            row["comparisons"] = [
                {
                    **comparison._asdict(),
                    "target": comparison.target and comparison.target._asdict(),
                    "ratio": result.ratio(comparison),
                    "quartiles": result.spread(comparison),
                }
                for comparison in result.comparisons
            ]
            rows.append(row)
        whole = {
            "machine": self.machine,
            "mode": self.mode,
            "rows": rows,
        }
        return json.dumps(whole, indent=1) + "\n"

    @classmethod
    def decode(cls, text: str) -> "Report":
        """Read what :meth:`encode` wrote."""
        whole = json.loads(text)
        results = []
        for row in whole["rows"]:
            comparisons = [
                Comparison(item["ours"], item["peer"], item["target"] and Target(**item["target"]))
                for item in row.pop("comparisons")
            ]
            del row["medians"]
            results.append(Result(**row, comparisons=comparisons))
        return cls(whole["machine"], whole["mode"], results)


def heading(machine: Mapping[str, Any]) -> Iterator[str]:
    """Return the lines that are above the rows."""
    yield (
        f"{machine['date']}, {machine['kernel']}, {machine['processors']} x {machine['cpu']}, "
        f"{machine['memory']}, as {machine['account']}"
    )
    yield ", ".join(f"{name}: {text}" for name, text in machine["versions"].items())


def lines(result: Result) -> Iterator[str]:
    """Return the lines of one row: its medians, and below them its ratios."""
    yield ""
    yield f"{result.row}: {result.what}"
    width = max(len(name) for name in (*result.samples, *result.absent))
    for name, samples in result.samples.items():
        middle = result.median(name)
        if middle is not None:
            yield f"  {name:{width}}  {figure(middle, result.unit):>11}  (median of {len(samples)})"
    for name, reason in result.absent.items():
        what = "failed" if name in result.failed else "missing"
        yield f"  {name:{width}}  {what}: {' '.join(reason.split())}"
    for comparison in result.comparisons:
        ratio = result.ratio(comparison)
        if ratio is None:
            continue
        spread = result.spread(comparison)
        text = f"  {comparison.ours} / {comparison.peer} = {ratio:.2f}"
        if spread is not None:
            text += f" ({spread[0]:.2f}..{spread[1]:.2f})"
        if comparison.target is not None:
            verdict = "reached" if comparison.target.reached(ratio) else "MISSED"
            text += f", to reach {comparison.target}: {verdict}"
        yield text
    if result.others > BUSY:
        yield f"  before or after it, {result.others:.0%} of the processors were otherwise busy"


def ending(report: Report) -> Iterator[str]:
    """Return the lines that are below the rows."""
    yield ""
    if report.mode == "short":
        yield "This was the short mode: its figures mean nothing."
    elif any(result.others > BUSY for result in report.results):
        yield "The machine was busy: measure again when nothing else runs on it."


def figure(value: float, unit: str) -> str:
    """Return a figure with three digits and the unit that suits it."""
    scales = _SCALES[unit]
    scale, name = next((item for item in scales if abs(value) >= item[0]), scales[-1])
    number = value / scale
    return f"{number:.3g} {name}" if abs(number) < 1000 else f"{number:.0f} {name}"


def plot(report: Report, path: str) -> None:
    """Draw the ratios that have a target, as a PNG.

    Raises:
        ImportError: If matplotlib is not there.
    """
    import matplotlib  # type: ignore[import-not-found]

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars: list[tuple[str, float, Target]] = []
    for result in report.results:
        for comparison in result.comparisons:
            ratio = result.ratio(comparison)
            if ratio is not None and comparison.target is not None:
                label = f"{result.row}: {comparison.ours} / {comparison.peer}"
                if comparison.target.least:
                    label += " (more is better)"
                bars.append((label, ratio, comparison.target))
    bars.reverse()
    figure_, axes = pyplot.subplots(figsize=(10, 1.2 + 0.34 * len(bars)), layout="constrained")
    places: Sequence[int] = range(len(bars))
    colours = ["#3a7d44" if target.reached(ratio) else "#b5523b" for _, ratio, target in bars]
    # From 1, where both sides are equal, to either side.
    axes.barh(places, [ratio - 1 for _, ratio, _ in bars], left=1, color=colours, height=0.6)
    axes.plot([target.bound for *_, target in bars], places, "k|", markersize=14, label="to reach")
    axes.set_yticks(places, [label for label, *_ in bars], fontsize=8)
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=0.8)
    for place, (_, ratio, _) in zip(places, bars, strict=True):
        axes.annotate(f" {ratio:.2f}", (max(ratio, 1), place), va="center", fontsize=8)
    machine = report.machine
    axes.set_title(
        f"ours / peer. {machine['date']}, {machine['kernel']}, "
        f"{machine['processors']} x {machine['cpu']}",
        fontsize=9,
    )
    values = [value for _, ratio, target in bars for value in (1, ratio, target.bound)]
    axes.set_xlim(min(values) / 1.3, max(values) * 1.4)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(loc="lower left", fontsize=8)
    figure_.savefig(path, dpi=110)
