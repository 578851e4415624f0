"""What people get wrong: one line that says what, the documented exit code, never a traceback. And stopping."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import pytest
from stage import FEDERATOR, SILO, TINY_UNET, Stage, images

from feddiff.core.identity import Invitation

USAGE, NO_IMAGES, AWAY, STATE, IDENTITY, CONFIG = 2, 66, 69, 74, 77, 78
PROGRAMS = {FEDERATOR: "feddiff-federator", SILO: "feddiff-silo"}


def fails(stage: Stage, code: int, says: str, module: str, *arguments: str) -> None:
    """The command ends with this code and one line on stderr that holds these words."""
    done = stage.call(module, *arguments)
    line = done.err.removesuffix("\n")
    assert done.code == code, done.err
    assert line.startswith(f"{PROGRAMS[module]}: "), done.err
    assert "\n" not in line, done.err
    assert "Traceback" not in line
    assert says in line
    assert done.out == ""


def test_a_federators_folder_and_rules(stage: Stage) -> None:
    config = ("--config", str(stage.rules))
    fails(stage, CONFIG, "name the federation's file with --config", FEDERATOR, "serve", *config)
    stage.home.mkdir()
    stage.rules.write_text('preset = "digits-16"\n')
    for command in (("serve",), ("invite", "hospital-a")):
        fails(stage, CONFIG, "is not a federator's folder", FEDERATOR, *command, *config)
    stage.rules.unlink()
    stage.found("udec", rounds=1)
    again = ("init", str(stage.home), "--address", stage.address)
    fails(stage, CONFIG, "is a federator's folder already", FEDERATOR, *again)
    fails(stage, CONFIG, "host:port expected", FEDERATOR, "init", str(stage.folder / "x"), "--address", "here")
    fails(stage, CONFIG, "'Hospital A' is not a name", FEDERATOR, "invite", "Hospital A", *config)
    fails(stage, CONFIG, "--expires soon", FEDERATOR, "invite", "hospital-a", "--expires", "soon", *config)

    good = stage.rules.read_text()
    for wrong, says in (
        (good.replace("epochs = 1", "epoch = 1"), "unknown key 'training.epoch'; known here: accumulate, batch_size"),
        (good.replace('"udec"', '"everything"'), "plan"),
        (good.replace("[rounds]", "[rounds"), "federation.toml"),
        (good.replace("sample_size = 8", "sample_size = -8"), "model.sample_size must be"),
    ):
        stage.rules.write_text(wrong)
        fails(stage, CONFIG, says, FEDERATOR, "serve", *config)
    stage.rules.write_text(good)

    for command in (("status",), ("ledger",), ("sample", "--out", "x.png"), ("report", "--out", "r")):
        fails(stage, STATE, "holds no federation that has begun", FEDERATOR, *command, *config)
    fails(stage, AWAY, "no federator is running in", FEDERATOR, "pause", *config)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        fails(stage, CONFIG, f"{listen} cannot be listened on", FEDERATOR, "serve", *config, "--listen", listen)

    server = stage.serve()
    fails(stage, STATE, "is in use by another federator", FEDERATOR, "serve", *config)
    fails(
        stage,
        CONFIG,
        "there is no silo, invitation or operator 'hospital-x'; enrolled: none",
        FEDERATOR,
        "revoke",
        "hospital-x",
        *config,
    )
    fails(stage, CONFIG, "plan udec has no global model", FEDERATOR, "sample", "--out", "x.png", *config)
    fails(stage, CONFIG, "plan udec has no global model", FEDERATOR, "export", str(stage.folder / "x"), *config)
    assert server.terminate() == 0
    stage.rules.write_text(good.replace("seed = 5", "seed = 6"))
    fails(stage, CONFIG, "the federation's rules have changed since it began", FEDERATOR, "serve", *config)
    fails(stage, AWAY, "no federator is running in", FEDERATOR, "stop", *config)


def test_a_silos_folder_data_and_address(stage: Stage) -> None:
    stage.found()
    server = stage.serve()
    state, data = stage.enrol("hospital-a"), stage.folder / "data"
    where = ("--federator", stage.address)
    mine = (*where, "--state", str(state))
    fails(stage, NO_IMAGES, f"{data} does not exist", SILO, "--data", str(data), *mine)
    data.mkdir()
    (data / "notes.txt").write_text("no image")
    fails(stage, NO_IMAGES, str(data), SILO, "--data", str(data), *mine)
    (data / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    done = stage.call(SILO, "--data", str(data), *mine)
    assert done.code == NO_IMAGES
    assert done.err.count("feddiff-silo: ") == 1
    assert "Traceback" not in done.err

    nobody = ("--state", str(stage.folder / "nobody"))
    fails(stage, CONFIG, "is not enrolled; the federation's operator", SILO, "--data", str(data), *where, *nobody)
    fails(stage, CONFIG, "host:port expected", SILO, "--data", str(data), "--federator", "there", *nobody)
    fails(stage, STATE, "holds no silo that has joined", SILO, "sample", "--out", "x.png", *nobody)
    fails(stage, IDENTITY, "invitation", SILO, "join", "no-token", *nobody)

    known = Invitation.parse(stage.invite("hospital-b"))
    for address, code, says in (
        ("federator.invalid:50051", CONFIG, "no host of that name is known"),
        ("127.0.0.1:1", AWAY, "connection refused; check the address"),
    ):
        token = Invitation(known.name, address, known.authority, known.secret).token()
        fails(stage, code, says, SILO, "join", token, *nobody)
    token = Invitation(known.name, known.address, b"\7" * 32, known.secret).token()
    fails(stage, IDENTITY, "this is another federation's, or somebody stands in between", SILO, "join", token, *nobody)

    silo = stage.noise("hospital-a")
    stage.until("it waits", lambda: stage.silo_status("hospital-a").get("reachable"))
    fails(stage, STATE, "is in use by another feddiff-silo", SILO, "--data", str(data), *mine)
    assert silo.terminate() == 0
    assert server.terminate() == 0


@pytest.mark.parametrize("module", [FEDERATOR, SILO])
def test_help_is_light_and_wrong_usage_is_2(stage: Stage, module: str) -> None:
    heavy = "{'torch', 'diffusers', 'numpy', 'grpc', 'matplotlib', 'PIL', 'pydantic'}"
    script = f"""
import sys
from {module} import main
try:
    main(["--help"])
except SystemExit as end:
    loaded = {heavy} & set(sys.modules)
    sys.exit(f"code {{end.code}}, loaded {{loaded}}" if end.code or loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: {PROGRAMS[module]}" in done.stdout
    for arguments in (["dance"], ["--speed", "9"], []):
        wrong = stage.call(module, *arguments)
        assert wrong.code == USAGE
        assert wrong.err.startswith("usage: ")
        assert "Traceback" not in wrong.err


def test_sigterm_stops_a_silo_that_waits(stage: Stage) -> None:
    stage.found()
    images(stage.folder / "data", 4, seed=0)
    state = stage.folder / "hospital-a"
    take_part = ("-m", SILO, "--data", str(stage.folder / "data"), "--federator", stage.address, "--state", str(state))
    early = stage.run("early", *take_part, "--join", stage.invite("hospital-a"))
    stage.until("it waits for its federator to enrol", lambda: "next try in" in early.told())
    assert early.terminate() == 0

    server = stage.serve()
    stage.enrol("hospital-a")
    patient = stage.noise("hospital-a")
    stage.until("it waits for its task", lambda: "task wait" in patient.told())
    assert patient.terminate() == 0
    server.kill()
    patient = stage.noise("hospital-a")
    stage.until("it waits for its federator", lambda: "the federator is away" in patient.told())
    assert patient.terminate() == 0
    (state / "lock").unlink()
    hasty = stage.run("hasty", *take_part)
    stage.until("it begins", (state / "lock").exists)
    assert hasty.terminate() == 0
    assert "Traceback" not in early.told() + patient.told() + hasty.told()


def test_a_silo_before_its_federator_and_sigterm_while_it_trains(stage: Stage) -> None:
    stage.found(rounds=1, silos=1, unet=TINY_UNET, training="steps = 1000000")
    images(stage.folder / "data", 4, seed=0)
    state = stage.folder / "hospital-a"
    silo = stage.run(
        "hospital-a",
        *("-m", SILO, "--data", str(stage.folder / "data"), "--federator", stage.address),
        *("--join", stage.invite("hospital-a"), "--state", str(state)),
    )
    stage.until("it waits for its federator", lambda: "next try in" in silo.told())
    server = stage.serve()
    stage.until("it trains", lambda: stage.silo_status("hospital-a").get("step", 0) > 0)
    assert stage.silo_status("hospital-a")["training"]
    assert silo.terminate() == 0
    assert server.terminate() == 0
    assert "Traceback" not in silo.told() + server.told()


def test_sigterm_stops_the_federator_and_it_goes_on_after_a_restart(stage: Stage) -> None:
    server = stage.found(rounds=3).serve()
    silos = [stage.hospital(name) for name in ("hospital-a", "hospital-b")]
    for silo in silos:
        silo.gate[2] = threading.Event()
        silo.start()
    stage.until("the second round trains", lambda: all(silo.training(2) for silo in silos))
    assert server.terminate() == 0
    assert stage.status()["phase"] == "stopped"
    for silo in silos:
        silo.gate[2].set()
    server = stage.serve()
    assert server.wait() == 0
    stage.until("all hear that it is over", lambda: all(silo.finished for silo in silos))
    assert all(len(silo.learner.results) == 3 for silo in silos)
    rounds = stage.opened().journal.rounds()
    assert [(each.round, each.silos) for each in rounds] == [(n, ("hospital-a", "hospital-b")) for n in (1, 2, 3)]
    assert "Traceback" not in server.told()
