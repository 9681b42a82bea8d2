# `make demo` and `make test` work on a machine that has Python >= 3.10 and nothing of ours.

PYTHON ?= python3
PYTEST_FLAGS ?= -n 2 --timeout 300
BIN := .venv/bin
STAMP := .venv/installed
TRITON_36 := .venv-triton36

# Debian packages that tests use where they are there, and skip what needs them where they are not.
CI_PACKAGES := libportaudio2 pulseaudio pulseaudio-utils libasound2-plugins opus-tools \
	libspeexdsp1 iproute2 oggz-tools vorbis-tools

.PHONY: demo demo-link test check aot bench gpu ci-deps clean

demo: $(STAMP)
	$(BIN)/encodec-rt demo

# Both ends of a call on this machine, with a bad network between them.
demo-link: $(STAMP)
	$(BIN)/encodec-rt link demo

# Everything that CI runs.
test: check
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

check: $(STAMP)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/mypy -p benches

# Compiles the kernels for GPUs that need not be there, with this Triton and with torch 2.11's.
aot: $(STAMP) $(TRITON_36)/installed
	PYTHONPATH=.:kernels $(BIN)/python tests/aot/gate.py
	PYTHONPATH=$(TRITON_36):.:kernels $(BIN)/python tests/aot/gate.py --arch 80 90

bench: $(STAMP)
	$(BIN)/python -m benches.stream

# For a machine with a CUDA device whose Python has torch, triton, numpy, safetensors and pytest;
# installs nothing. The benches refuse to time what is not right. Each part has its own time, 525 s in
# all; one that fails or is stopped loses nothing of the others, and what it measured is kept.
gpu: export PYTHONPATH := .:kernels
gpu:
	@failed=; part() { echo "== $$*"; timeout -s INT -k 5 "$$@" || failed="$$failed $$4"; }; \
	part 160 $(PYTHON) -m pytest -q -W default tests/gpu tests/kernels/test_conv.py \
		tests/kernels/test_lstm.py tests/kernels/test_rvq.py; \
	part 85 $(PYTHON) -m benches.gpu latency --budget 65; \
	part 110 $(PYTHON) -m benches.gpu streams --budget 90; \
	part 50 $(PYTHON) -m benches.kernels --budget 30; \
	part 120 $(PYTHON) -m benches.gpu rivals --budget 100; \
	test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "encodec_rt needs Python >= 3.10")'
	@echo 'installing into .venv, which takes some minutes'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip
# torch first and by its exact version, so that a build of it that is at hand is taken.
	@$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
# The original package, which tests compare with, asks for a torchaudio that it does not need.
	@$(BIN)/python -m pip install --quiet --no-deps encodec
	@touch $@

# Found before the packages of .venv: nothing but Triton differs.
$(TRITON_36)/installed: $(STAMP)
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(TRITON_36) triton==3.6.0
	@touch $@

ci-deps:
	@.ci/packages $(CI_PACKAGES)

clean:
	rm -rf .venv .venv-triton36 .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist demo demo-link *.egg-info
