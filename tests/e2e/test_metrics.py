"""Both daemons scraped while they train; the dashboard and the alerts name nothing that is not there."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from stage import FEDERATOR, Stage

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD, ALERTS = DEPLOY / "grafana" / "feddiff.json", DEPLOY / "prometheus" / "alerts.yml"


def free() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(reply.read().decode())


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(text: str, name: str) -> dict[frozenset[str], float]:
    """Values of a metric, by what its labels say."""
    samples = [sample for family in families(text).values() for sample in family.samples if sample.name == name]
    return {frozenset(sample.labels.values()): sample.value for sample in samples}


def names(text: str) -> set[str]:
    found = families(text).values()
    return {each.name + ("_total" if each.type == "counter" else "") for each in found} | {
        sample.name for each in found for sample in each.samples
    }


def expressions() -> list[str]:
    """All that the dashboard and the alerts ask for."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return asked + [rule["expr"] for group in groups for rule in group["rules"]]


def test_everything_that_is_asked_for_is_told_by_the_daemons(stage: Stage) -> None:
    stage.found(rounds=2)
    here, there = free(), free()
    server = stage.serve("--metrics", here)
    stage.hospital("hospital-b", samples=7).start()
    silo = stage.noise("hospital-a", 6, 120.0, "--metrics", there)
    stage.until("the silo tells", lambda: "joined with 6" in server.told())
    stage.until("the silo trains", lambda: values(scrape(there), "feddiff_silo_step") == {frozenset(): 1})

    own = scrape(there)
    assert values(own, "feddiff_silo_training") == {frozenset(): 1}
    assert values(own, "feddiff_silo_phase")[frozenset({"training"})] == 1
    assert values(own, "feddiff_silo_images") == {frozenset({""}): 6}
    assert values(own, "feddiff_silo_round") == {frozenset(): 1}
    assert values(own, "feddiff_silo_rounds") == {frozenset(): 2}
    now = {name: values(own, f"feddiff_silo_{name}")[frozenset()] for name in ("step", "steps", "loss")}
    assert now == {"step": 1, "steps": 2, "loss": 2.0}
    assert values(own, "feddiff_silo_images_per_second")[frozenset()] == 1.0
    assert values(own, "feddiff_silo_transferred_bytes_total")[frozenset({"down"})] > 0
    assert 0 <= values(own, "feddiff_silo_federator_silent_seconds")[frozenset()] < 60
    year = 365 * 86400
    assert values(own, "feddiff_silo_certificate_remaining_seconds")[frozenset({"silo"})] <= year

    told = scrape(here)
    assert values(told, "feddiff_federator_phase")[frozenset({"collecting"})] == 1
    assert sum(values(told, "feddiff_federator_phase").values()) == 1
    for truth in ("enrolled", "reachable"):
        assert set(values(told, f"feddiff_federator_silo_{truth}").values()) == {1}
    assert values(told, "feddiff_federator_silo_images")[frozenset({"hospital-b"})] == 7
    wire = values(told, "feddiff_federator_wire_bytes_total")
    assert {frozenset({"hospital-a", segment, "down"}) for segment in stage.opened().layout.names} <= wire.keys()
    assert {next(iter(key)) for key in values(told, "feddiff_federator_certificate_remaining_seconds")} >= {
        "server",
        "authority",
    }
    assert values(told, "feddiff_federator_disk_free_bytes")[frozenset()] > 0

    asked = {name for text in expressions() for name in re.findall(r"\b(?:feddiff|process)_\w+", text)}
    assert len(asked) > 40
    assert not asked - names(told) - names(own)
    for text in (told, own):
        mine = [each for each in families(text).values() if not each.name.startswith("process_")]
        assert all(each.documentation for each in mine)
        assert all(each.type != "unknown" for each in mine)
        assert all(re.fullmatch(r"feddiff_(federator|silo)(_[a-z]+)*", each.name) for each in mine)
        assert str(stage.folder) not in text

    silo.kill()
    assert server.terminate() == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [("127.0.0.1", "host:port expected"), ("taken", "cannot be listened on: address already in use")],
)
def test_a_metrics_address_that_cannot_be_is_one_line(stage: Stage, given: str, said: str) -> None:
    stage.found()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}" if given == "taken" else given
        done = stage.call(FEDERATOR, "serve", "--config", str(stage.rules), "--metrics", address)
    assert (done.code, done.err.count("\n")) == (78, 1)
    assert said in done.err


def test_the_dashboard_can_be_imported() -> None:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text())
    assert board["id"] is None
    assert board["schemaVersion"] >= 36
    (source, *variables) = board["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    known = {source["name"], *(each["name"] for each in variables)}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= known
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells), "two panels lie on one another"


def test_rules_and_example_are_prometheus_files() -> None:
    example = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in example["scrape_configs"]}
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert set(re.findall(r'job="([^"]+)"', ALERTS.read_text())) <= jobs
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert {"expr", "labels", "annotations"} <= rule.keys()
        assert {"summary", "description"} <= rule["annotations"].keys()
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
    if shutil.which("promtool"):
        for check in (("rules", ALERTS), ("config", DEPLOY / "prometheus" / "prometheus.yml")):
            subprocess.run(["promtool", "check", check[0], str(check[1])], check=True)
