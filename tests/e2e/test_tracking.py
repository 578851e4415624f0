"""TensorBoard and MLflow are told every round once, through a kill, an outage and measurements that come late."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image
from stage import Stage

from feddiff.core.errors import ConfigError
from feddiff.core.quality import Measured
from feddiff.federator import tracking


class Server(ThreadingHTTPServer):
    """The part of MLflow's REST API that a tracker needs, as its reference says; ``away`` answers 503."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.away = False
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, bytes] = {}
        self.sent: list[tuple[str, int, float]] = []

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, method: str, path: str, asked: dict[str, Any], body: bytes) -> dict[str, Any]:
        if path.startswith("mlflow-artifacts/artifacts/"):
            assert method == "PUT"
            self.artifacts[path.removeprefix("mlflow-artifacts/artifacts/")] = body
            return {}
        name, made = path.removeprefix("mlflow/"), f"run{len(self.runs)}"
        table = json.loads(body) if body else {key: value[0] for key, value in asked.items()}
        if name == "experiments/get-by-name" and not self.runs:
            raise LookupError
        if name == "experiments/get-by-name":
            return {"experiment": {"experiment_id": "7"}}
        if name == "experiments/create":
            return {"experiment_id": "7"}
        if name == "runs/search":
            sought = {
                key: f"tags.`{key}` = '{value}'" for run in self.runs.values() for key, value in run["tags"].items()
            }
            return {"runs": [self.told(run) for run in self.runs.values() if table["filter"] in sought.values()]}
        if name == "runs/create":
            info = {
                "run_id": made,
                "artifact_uri": f"mlflow-artifacts:/7/{made}/artifacts",
                "lifecycle_stage": "active",
            }
            tags = {each["key"]: each["value"] for each in table["tags"]}
            self.runs[made] = {"info": info, "params": {}, "metrics": {}, "status": "RUNNING", "tags": tags}
        if name == "artifacts/list":
            files = [each.partition("/artifacts/")[2] for each in self.artifacts]
            return {"files": [{"path": each} for each in files if each.startswith(table["path"] + "/")]}
        run = self.runs[table.get("run_id", made)]
        if name == "runs/update":
            run["status"] = table["status"]
        elif name == "runs/log-batch":
            for each in table.get("metrics", []):
                self.sent.append((each["key"], each["step"], each["value"]))
                run["metrics"].setdefault(each["key"], {})[each["step"]] = each
            run["params"] |= {each["key"]: each["value"] for each in table.get("params", [])}
        elif name == "metrics/get-history":
            return {"metrics": list(run["metrics"][table["metric_key"]].values())}
        return {"run": self.told(run)}

    @staticmethod
    def told(run: dict[str, Any]) -> dict[str, Any]:
        params = [{"key": key, "value": value} for key, value in run["params"].items()]
        return {
            "info": run["info"],
            "data": {"metrics": [each[max(each)] for each in run["metrics"].values()], "params": params},
        }


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        code, answer = 200, {}
        try:
            if self.server.away:
                code, answer = 503, {"error_code": "TEMPORARILY_UNAVAILABLE"}
            else:
                place = parts.path.removeprefix("/api/2.0/")
                answer = self.server.answer(self.command, place, parse_qs(parts.query), body)
        except LookupError:
            code, answer = 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
        text = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """No news."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def events(folder: Path) -> list[Any]:
    """All values of an event file, by TensorBoard's own reader."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    (path,) = folder.glob("*/events.out.tfevents.*")
    return [
        (event.step, value) for event in loader.LegacyEventFileLoader(str(path)).Load() for value in event.summary.value
    ]


def test_every_round_is_told_once(stage: Stage, server: Server) -> None:
    pytest.importorskip("tensorboard")
    stage.found(rounds=4)
    board = stage.folder / "board"
    options = ("--track", f"tensorboard:{board}", "--track", f"mlflow:{server.uri}")
    first = stage.serve(*options)
    silos = [stage.hospital(name, samples) for name, samples in (("hospital-a", 3), ("hospital-b", 1))]
    for silo in silos:
        silo.gate[3] = silo.gate[4] = threading.Event()
        silo.start()
    stage.until("two rounds are told", lambda: ("round/silos", 2) in {each[:2] for each in server.sent})
    stage.until(
        "and here", lambda: board.exists() and ("round/silos", 2) in {(v.tag, step) for step, v in events(board)}
    )
    first.kill()
    (path,) = board.glob("*/events*")
    with path.open("ab") as file:
        file.write(struct.pack("<Q", 10) + b"torn")  # a record that the kill has cut short
    server.away = True
    last = stage.serve(*options)
    stage.until("the outage is said", lambda: "503" in last.told())
    late = [Measured("fid", 3.5, None, 5, 5, "reference", "x", "d"), Measured("doe", 1.0, None, 5, 5, "", "x", "d")]
    stage.opened().ledger.measure(2, "", late)
    (stage.home / "samples").mkdir()
    Image.new("L", (6, 4), 9).save(stage.home / "samples" / "round-0002.png")
    Image.new("L", (6, 4), 9).save(stage.home / "samples" / "mine.png")
    for silo in silos:
        silo.gate[3].set()
    stage.until("four rounds", lambda: last.told().count("is published") == 4)
    server.away = False
    assert last.wait() == 0

    federation, told = stage.opened(), Counter((value.tag, step) for step, value in events(board))
    assert set(told.values()) == {1}
    numbers = {(value.tag, step): value.simple_value for step, value in events(board)}
    metrics = federation.journal.metrics()
    for round in range(1, 5):
        assert numbers["round/silos", round] == 2
        assert numbers["bytes/up", round] == pytest.approx(federation.ledger.wire("up", round), rel=0.05)
        losses = {silo: numbers[f"loss/{silo}", round] for silo in ("hospital-a", "hospital-b")}
        assert losses == {silo: each["loss"] for silo, each in metrics[round].items()}
        assert numbers["loss/_all", round] == pytest.approx((3 * losses["hospital-a"] + losses["hospital-b"]) / 4)
    assert numbers["quality/fid vs reference/_all", 2] == 3.5
    (drawn,) = (value.image for _, value in events(board) if value.HasField("image"))
    assert (drawn.width, drawn.height, drawn.colorspace) == (6, 4, 1)
    (rules,) = (value.tensor.string_val[0] for _, value in events(board) if value.tag == "rules")
    assert b'"plan": "full"' in rules
    assert not [tag for tag, _ in told if "doe" in tag]

    (run,) = server.runs.values()
    assert run["status"] == "FINISHED"
    assert (run["params"]["plan"], run["params"]["rounds.count"]) == ("full", "4")
    assert set(Counter(each[:2] for each in server.sent).values()) == {1}
    points = {(tag, step) for tag, step in told if tag != "rules" and not tag.startswith("samples/")}
    assert {each[:2] for each in server.sent} == points
    assert list(server.artifacts) == ["7/run0/artifacts/samples/_all/round-0002.png"]
    assert last.told().count("--track mlflow") == 2, "once that it fails, once that it works"


@pytest.mark.parametrize("target", ["tensorboard:", "wandb:x", "mlflow:./runs", "mlflow:ftp://x", "mlflow:"])
def test_a_tracker_that_cannot_be_is_one_line(target: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tracking.parse(target)
    assert "\n" not in caught.value.sentence


def test_without_tensorboard_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'feddiff\[tensorboard\]'"):
        tracking.parse(f"tensorboard:{tmp_path}")


def test_a_folder_that_cannot_be_written_ends_nothing(stage: Stage) -> None:
    pytest.importorskip("tensorboard")
    stage.found(rounds=1)
    blocked = stage.folder / "file"
    blocked.write_text("")
    process = stage.serve("--track", f"tensorboard:{blocked}")
    for name in ("hospital-a", "hospital-b"):
        stage.hospital(name).start()
    assert process.wait() == 0
    assert process.told().count("--track tensorboard") == 1


def test_a_tracker_loads_no_torch() -> None:
    pytest.importorskip("tensorboard")
    code = (
        "import sys; from feddiff.federator import cli, eventfile, metrics, tracking;"
        "from tensorboard.compat.proto.event_pb2 import Event;"
        "from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c;"
        "print(sorted({'torch', 'tensorflow'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
