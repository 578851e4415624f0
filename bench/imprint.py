"""What stands around the charts of a sweep's page: what was run, the key figures, how it was measured and with what.

Takes bench/setting.py's settings; whatever decides whether two numbers can be compared is named here in full.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from feddiff.bench import overview
from feddiff.bench.basis import Basis
from feddiff.bench.setting import Setting, Spread
from feddiff.bench.table import Entry
from feddiff.federator import page
from feddiff.federator.measure import NONE, amount

Read = Callable[[Setting], Spread | None]


def bases(known: Sequence[Setting], metric: str, against: str) -> list[Basis]:
    """Those of a metric, the one of most settings first."""
    return [basis for basis, _ in Counter(b for each in known for b in each.measured(metric, against)).most_common()]


def reader(metric: str, against: str, basis: Basis) -> Read:
    """Reads a metric of settings that have it on this basis."""
    return lambda each: each.measured(metric, against).get(basis)


def cautions(known: Sequence[Setting]) -> list[str]:
    """What was said beside the numbers, each once."""
    numbers = [number for each in known for result in each.results for number in result["quality"].get("metrics", ())]
    return sorted({f"{number['metric']}: {text}" for number in numbers for text in number.get("cautions", ())})


def about(known: Sequence[Setting]) -> str:
    paths = {Path(str(each["data"]["path"])).name for one in known for each in one.results if "data" in each}
    plans = dict.fromkeys(each.plan for each in known if each.wire is not None)
    told = [f"data {', '.join(sorted(paths))}"] if paths else []
    told += [f"plans {', '.join(plans)}"] if plans else []
    scenarios = dict.fromkeys(each.scenario for each in known if each.wire is not None)
    told += [f"{'; '.join(name for name in scenarios if name)}"] if len(scenarios) <= 4 and any(scenarios) else []
    told += [f"{basis.extractor} {basis.digest[:8]}" for basis in bases(known, "fid", "test")]
    return " · ".join(["feddiff-bench", *told])


def figures(entries: Sequence[Entry], known: Sequence[Setting], fid: Read | None) -> list[tuple[str, str]]:
    done = [entry.result for entry in entries if entry.result is not None]
    federated = [each for each in known if each.wire is not None]
    seeds = {entry.settings.get("seed") for entry in entries}
    sent = sum(result["totals"].get("down", 0) + result["totals"].get("up", 0) for result in done)
    images = {sum(sum(by.values()) for by in r["data"]["silos"].values()) for r in done if "data" in r}
    held = {r["quality"].get("validation_loss", {}).get("images") for r in done} - {None}
    found = [
        (
            f"{len(done)} of {len(entries)}",
            f"cells done: {len(known)} settings, {len(seeds)} seed{'s' * (len(seeds) != 1)}",
        ),
        (_range(images), f"training images; {_range(held)} held out"),
        (_range({result["parameters"] for result in done if "parameters" in result}), "parameters"),
        (amount(sent), "on the wire in all cells together"),
    ]
    value: Read = fid or (lambda each: each.loss)
    word = "FID, test" if fid else "validation loss"
    numbers = [(number, each) for each in federated if (number := value(each))]
    if numbers:
        number, each = min(numbers, key=lambda pair: pair[0].mean)
        found.append((number.text(overview.figures), f"best {word} of a federation: {each.number} {each.name}"))
        near = [(each, wire) for other, each in numbers if other.mean <= 1.1 * number.mean and (wire := each.wire)]
        each, wire = min(near, key=lambda pair: pair[1].mean)
        found.append((amount(wire.mean), f"fewest bytes within 10 % of that: {each.number} {each.name}"))
    times = [(times, each) for each in federated if (times := overview.fewer(each))]
    if times:
        most, each = max(times, key=lambda pair: pair[0].mean)
        found.append(
            (f"{overview.figures(most.mean)}×", f"fewer bytes than raw float32, at most: {each.number} {each.name}")
        )
    centre = [number for each in known if each.kind == "centralised" and (number := value(each))]
    if centre:
        best = min(centre, key=lambda number: number.mean)
        found.append((best.text(overview.figures), f"{word} of the centralised baseline"))
    return found


def _range(numbers: set[int]) -> str:
    known = sorted(numbers)
    if not known:
        return NONE
    return f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,}"


def missing(entries: Sequence[Entry]) -> str:
    failed = [f"{entry.key}: {entry.failure}" for entry in entries if entry.failure]
    waiting = sum(entry.result is None and not entry.failure for entry in entries)
    told = page.note(f"{waiting} of {len(entries)} cells are not run yet.") if waiting else ""
    return told + (page.folded(f"{len(failed)} cells failed", "\n".join(failed)) if failed else "")


def notes(known: Sequence[Setting]) -> str:
    software = {json.dumps(r["software"], sort_keys=True) for each in known for r in each.results if "software" in r}
    samples = {json.dumps(r["samples"], sort_keys=True) for each in known for r in each.results if "samples" in r}
    told = (
        "Wire bytes are the ledger's: everything that crossed the connections of all silos, payload, framing of"
        " protobuf, gRPC, HTTP/2 and TLS, and whatever had to be sent again. Raw float32 is the whole model, down and"
        " up, for each silo of each round. Units are decimal. Two FIDs can be compared only if extractor, number of"
        " samples and reference are the same; few samples make them large."
    )
    blocks = [page.heading("How it was measured"), page.note(told)]
    blocks += [
        page.note("Software: " + ", ".join(f"{k} {v}" for k, v in json.loads(each).items()))
        for each in sorted(software)
    ]
    blocks += [
        page.note("Samples: " + ", ".join(f"{k} {v}" for k, v in json.loads(each).items())) for each in sorted(samples)
    ]
    digests = {
        basis.extractor: basis.digest for against in ("test", "training") for basis in bases(known, "fid", against)
    }
    blocks += [page.note(f"Extractor {name}: SHA-256 {digest}") for name, digest in digests.items()]
    data = {r["data"].get("digest") for each in known for r in each.results if "data" in r} - {None}
    blocks += [page.note(f"Images: SHA-256 of names and sizes {digest}") for digest in sorted(data)]
    listed = "\n".join(f"{each.number:>3}  {each.label}  ({', '.join(each.keys)})" for each in known)
    return "".join(blocks) + page.folded("All settings and the files of their cells", listed)
