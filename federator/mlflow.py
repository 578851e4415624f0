"""``--track mlflow:http://HOST:PORT``: a run on an MLflow tracking server, by its REST API (version 2.0).

No package of MLflow's is needed here. The run bears a mark that is in the journal; what it holds is asked of the
server. Points are sent with their round's end as their time, so one that is sent again after a lost answer is the same
point. Pictures go where the server stores artifacts itself (``mlflow server`` does by default), and nowhere else.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import TYPE_CHECKING, Any

from feddiff.core.errors import ConfigError

if TYPE_CHECKING:
    from feddiff.federator.federation import Federation
    from feddiff.federator.tracking import Page

ANSWER_S = 20.0
MAX_ANSWER_BYTES = 64 << 20
EXPERIMENT = "feddiff"
MARK = "feddiff.federation"
"""The tag by which a federation knows its run."""
BATCH = 100
"""Values that a request may hold: MLflow takes as many parameters, and more metrics."""
LONGEST = 500
"""Characters of a parameter that every MLflow takes."""

log = logging.getLogger("feddiff.federator")


class MLflow:
    """One run. ``MLFLOW_TRACKING_TOKEN``, or ``…_USERNAME`` and ``…_PASSWORD``, are used as MLflow's client does."""

    def __init__(self, uri: str) -> None:
        """Raises ConfigError for anything but the address of a server."""
        parts = urllib.parse.urlsplit(uri)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"--track mlflow:{uri:.80}: the address of an MLflow server was expected, e.g."
                " mlflow:http://127.0.0.1:5000 (`mlflow server` starts one)"
            )
        self._uri = uri.rstrip("/")
        self._run, self._artifacts = "", ""
        self._keys: set[str] = set()
        self._known: dict[str, set[int]] = {}

    def open(self, federation: Federation) -> None:
        """Find the run, or begin it with the rules as its parameters. Raises OSError, ValueError, LookupError."""
        from feddiff.federator.tracking import parameters

        fact = f"mlflow {self._uri}"
        mark = federation.journal.fact(fact) or uuid.uuid4().hex
        federation.journal.note(fact, mark)  # before the run is made: an answer that is lost must not make two
        experiment = self._experiment()
        asked = {"experiment_ids": [experiment], "filter": f"tags.`{MARK}` = '{mark}'", "max_results": 1}
        run = next(iter(self._ask("runs/search", asked).get("runs", [])), None)
        if run is None:
            began = next((each.opened_at for each in federation.journal.rounds()[:1]), time.time())
            made = {"experiment_id": experiment, "run_name": federation.config.name, "start_time": int(began * 1000)}
            made["tags"] = [{"key": MARK, "value": mark}, {"key": "feddiff.rules", "value": federation.config.digest}]
            run = self._ask("runs/create", made)["run"]
        self._run, self._artifacts = str(run["info"]["run_id"]), str(run["info"].get("artifact_uri", ""))
        data = run.get("data", {})
        self._keys, self._known = {str(each["key"]) for each in data.get("metrics", [])}, {}
        if not data.get("params"):
            rules = [{"key": key, "value": value[:LONGEST]} for key, value in parameters(federation).items()]
            for at in range(0, len(rules), BATCH):
                self._ask("runs/log-batch", {"run_id": self._run, "params": rules[at : at + BATCH]})

    def has(self, page: Page) -> bool:
        """Raises OSError, ValueError, LookupError."""
        name, round = page.key
        if name not in self._known:
            self._known[name] = self._pictures(name) if page.picture else self._history(name)
        return round in self._known[name]

    def write(self, page: Page) -> None:
        """Raises OSError, ValueError, LookupError."""
        if page.picture is not None and (place := self._place(page.picture[0], page.round)):
            self._send("PUT", place, page.picture[1].read_bytes(), "image/png")
        at = int(page.at * 1000)
        points = [
            {"key": name, "value": value, "timestamp": at, "step": page.round} for name, value in page.values.items()
        ]
        # The name that says that the page is there comes with the last of it.
        points.reverse()
        for start in range(0, len(points), BATCH):
            self._ask("runs/log-batch", {"run_id": self._run, "metrics": points[start : start + BATCH]})
        self._known.setdefault(page.key[0], set()).add(page.round)

    def close(self, finished: bool) -> None:
        """Raises OSError, ValueError."""
        if finished:
            self._ask("runs/update", {"run_id": self._run, "status": "FINISHED"})

    def _experiment(self) -> str:
        name = urllib.parse.quote(os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT))
        try:
            return str(self._ask(f"experiments/get-by-name?experiment_name={name}")["experiment"]["experiment_id"])
        except FileNotFoundError:
            return str(self._ask("experiments/create", {"name": urllib.parse.unquote(name)})["experiment_id"])

    def _history(self, name: str) -> set[int]:
        """Rounds of which a metric is there."""
        found: set[int] = set()
        token = "" if name in self._keys else None
        while token is not None:
            query = urllib.parse.urlencode(
                {"run_id": self._run, "metric_key": name, **({"page_token": token} if token else {})}
            )
            answer = self._ask(f"metrics/get-history?{query}")
            found |= {int(each.get("step", 0)) for each in answer.get("metrics", [])}
            token = answer.get("next_page_token") or None
        return found

    def _pictures(self, name: str) -> set[int]:
        query = urllib.parse.urlencode({"run_id": self._run, "path": name})
        files = self._ask(f"artifacts/list?{query}").get("files", []) if self._place(name, 0) else []
        stems = [str(each["path"]).rpartition("/round-")[2].removesuffix(".png") for each in files]
        return {int(stem) for stem in stems if stem.isdecimal()}

    def _place(self, name: str, round: int) -> str:
        """Where the server takes a picture; "" if it does not."""
        parts = urllib.parse.urlsplit(self._artifacts)
        if parts.scheme != "mlflow-artifacts":
            return ""
        return f"mlflow-artifacts/artifacts{parts.path}/{name}/round-{round:04}.png"

    def _ask(self, what: str, table: object = None) -> Any:
        data = None if table is None else json.dumps(table).encode()
        answer = self._send("GET" if data is None else "POST", f"mlflow/{what}", data, "application/json")
        found = json.loads(answer or b"{}")
        if not isinstance(found, dict):
            raise ValueError("the answer is no MLflow server's")
        return found

    def _send(self, method: str, place: str, data: bytes | None, kind: str) -> bytes:
        """Raises OSError; FileNotFoundError for what is not there."""
        headers = {"Content-Type": kind, **_authority()}
        request = urllib.request.Request(f"{self._uri}/api/2.0/{place}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as reply:
                answer: bytes = reply.read(MAX_ANSWER_BYTES)
                return answer
        except urllib.error.HTTPError as error:
            text = error.read(500).decode(errors="replace").replace("\n", " ")
            if error.code == 404 and "RESOURCE_DOES_NOT_EXIST" in text:
                raise FileNotFoundError(text) from None
            raise OSError(f"the server answers {error.code}: {text[:200]}") from None
        except urllib.error.URLError as error:
            raise OSError(f"the server does not answer: {error.reason}") from None


def _authority() -> dict[str, str]:
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        return {"Authorization": f"Bearer {token}"}
    if user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()
        return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    return {}
