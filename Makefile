# `make demo` and `make test` need nothing but Python: each sets up .venv first, and again only when
# pyproject.toml or constraints.txt changed.

PYTHON ?= python3
PLAN ?= full

BIN := .venv/bin
SETUP := .venv/.set-up
TYPING := .typing/feddiff
CONTRACT := $(wildcard proto/feddiff/v1/*.proto)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo bench test test-slow bench-codec bench-transport bench-link bench-topology bench-quality format proto wheel wheelhouse rehearse clean

help:
	@echo 'make demo [PLAN=full|usplit|ulatdec|udec]   a small federation on this machine; results in demo-run/'
	@echo 'make bench                                  plans x codecs: bytes against image quality; half an hour; results in'
	@echo '                                            bench-run/plans/report.html'
	@echo 'make test                                   format, lint, types, tests'
	@echo 'make test-slow                              the tests that take minutes'
	@echo 'make bench-codec                            ratio, speed and error of every codec on real training'
	@echo 'make bench-transport [PEERS=dir]            a round without training: time, CPU, wire, memory; peers need root'
	@echo 'make bench-link                             share of a long, lossy line, against iperf3; needs root'
	@echo 'make bench-topology                         star against peers on shaped lines, by the number of silos; needs root'
	@echo 'make bench-quality [ARGS=...]               bytes against validation loss, over real federations; half an hour'
	@echo 'make format                                 let ruff put the sources in order'
	@echo 'make proto                                  write the generated code of proto/ anew'
	@echo 'make wheel                                  dist/feddiff-*.whl'
	@echo 'make wheelhouse                             dist/wheelhouse/: all that a site without internet needs'
	@echo 'make rehearse                               a federation over three network namespaces; needs root'
	@echo 'make clean                                  remove everything that make made, .venv included'
	@echo 'PYTHON=python3.12 with any of them          the Python that .venv is made of; 3.11 or newer'

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	  { echo 'feddiff: there is no $(PYTHON) here; name one of 3.11 or newer: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "feddiff: $(PYTHON) is $$($(PYTHON) --version), 3.11 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	@echo 'Setting up .venv (a minute or two, once)'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(SETUP)
	$(BIN)/python -m feddiff.bench.demo --plan $(PLAN) --out demo-run

# Two cells at a time, whose networks are too small for more than one thread. What is done is not run again.
bench: $(SETUP)
	$(BIN)/feddiff-bench run plans --jobs 2 --out bench-run/plans
	$(BIN)/feddiff-bench report bench-run/plans

# The folders install as feddiff.*; type checkers see that through links.
$(TYPING)/.linked: Makefile
	@mkdir -p $(TYPING)
	@for folder in core federator silo bench; do ln -sfn ../../$$folder $(TYPING)/$$folder; done
	@ln -sfn ../../proto/feddiff/v1 $(TYPING)/v1
	@touch $@

test: $(SETUP) $(TYPING)/.linked
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p feddiff.core -p feddiff.federator -p feddiff.silo -p feddiff.bench
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not slow'

test-slow: $(SETUP)
	$(BIN)/pytest -m slow

bench-codec: $(SETUP)
	$(BIN)/python -m feddiff.bench.codec

bench-transport: $(SETUP)
	$(BIN)/python -m feddiff.bench.transport $(if $(PEERS),--peers $(PEERS)) $(ARGS)

bench-link: $(SETUP)
	$(BIN)/python -m feddiff.bench.link $(ARGS)

bench-topology: $(SETUP)
	$(BIN)/python -m feddiff.bench.topology $(ARGS)

bench-quality: $(SETUP)
	$(BIN)/python -m feddiff.bench.quality $(ARGS)

format: $(SETUP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(SETUP)
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto --grpc_python_out=proto $(CONTRACT)

wheel: $(SETUP)
	@rm -rf build
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

rehearse: $(SETUP)
	deploy/rehearse.sh --python $(BIN)/python

# Everything that a site without internet needs, for machines like this one (Python's version, processor):
# one folder to copy, with wheels, installers, units and pages. Another index or CUDA: pip's own settings.
wheelhouse: wheel
	@rm -rf dist/wheelhouse
	@mkdir -p dist/wheelhouse/docs
	$(BIN)/python -m pip wheel --quiet -c constraints.txt --wheel-dir dist/wheelhouse/wheels \
	  "$$(ls dist/feddiff-*.whl)[medical]"
	@cp -r deploy/install-silo.sh deploy/install-federator.sh deploy/Containerfile.* deploy/systemd deploy/examples dist/wheelhouse/
	@cp docs/*.md dist/wheelhouse/docs/
	@$(BIN)/python -c 'import platform as p; print("made for Python", ".".join(p.python_version_tuple()[:2]), "on", p.platform())' \
	  > dist/wheelhouse/README
	@cd dist/wheelhouse && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS
	@echo 'dist/wheelhouse: copy it to the site, check it (sha256sum -c SHA256SUMS), and run ./install-silo.sh there'

clean:
	rm -rf .venv .typing build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis demo-run bench-run
