# `make demo` works on a machine that has Python >= 3.10 and nothing of ours; `make test` and
# `make demo-link` need 3.11, since aiortc does.

PYTHON ?= python3
PYTEST_FLAGS ?= -n 2 --timeout 300
BIN := .venv/bin
STAMP := .venv/installed
TRITON_36 := .venv-triton36

# Debian packages that tests use where they are there, and skip what needs them where they are not.
CI_PACKAGES := libportaudio2 pulseaudio pulseaudio-utils libasound2-plugins opus-tools \
	libspeexdsp1 iproute2 nodejs chromium oggz-tools vorbis-tools

.PHONY: demo demo-link demo-server test coverage check aot wasm bench gpu gpu-kernels gpu-rehearsal ci-deps clean

# Each installs what it needs and no more, unless all of it is there already.
demo: $(or $(wildcard $(STAMP)),.venv/demo)
	$(BIN)/encodec-rt demo

# Both ends of a call on this machine, with a bad network between them.
demo-link: $(or $(wildcard $(STAMP)),.venv/demo-link)
	$(BIN)/encodec-rt link demo

# A server, and six clients that talk to it at once.
demo-server: $(or $(wildcard $(STAMP)),.venv/demo-server)
	$(BIN)/encodec-rt serve --demo

# What CI runs, together with `aot`.
test: check
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# Apart from `test`: under Python 3.11 it costs a third to two thirds more CPU time (28.4 s instead of
# 21.4 for three test files, 20.6 and 23.1 instead of 14.3 and 13.6 for tests/bitstream/test_{packet,ecdc}.py).
coverage: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_FLAGS) --cov=encodec_rt --cov=encodec_rt_kernels \
		--cov-report=term:skip-covered

check: $(STAMP)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy

# Compiles the kernels for GPUs that need not be there, with this Triton and with torch 2.11's: those
# that this machine has not compiled before. `make aot AOT_KNOWN=` compiles all.
AOT_KNOWN ?= $(HOME)/.cache/encodec_rt/aot
aot: $(STAMP) $(TRITON_36)/installed
	PYTHONPATH=.:kernels $(BIN)/python tests/aot/gate.py $(AOT_KNOWN:%=--known %)
	PYTHONPATH=$(TRITON_36):.:kernels $(BIN)/python tests/aot/gate.py --arch 80 90 \
		$(AOT_KNOWN:%=--known %)

# The codec for WebAssembly; a test compares the committed one with what this makes.
wasm: $(STAMP)
	$(BIN)/python -m encodec_rt.web.build

# Every CPU record that the README cites, from a clean tree; wants the machine to itself.
bench: $(STAMP)
	$(BIN)/python -m benches.cpu live paced slots startup
	$(BIN)/python -m benches.cpu startup --model default
	$(BIN)/python -m benches.cpu_files
	$(BIN)/python -m benches.stream
	$(BIN)/python -m benches.stream --model default
	$(BIN)/python -m benches.numerics

# For a machine with a CUDA device whose Python has torch, triton, numpy, safetensors and pytest;
# installs nothing. All results are in one folder, RESULTS; where there is no git, COMMIT=<hash> says
# what is measured; KERNELS=<file> is what `make gpu-kernels` made. See docs/gpu-day.md.
RESULTS ?= gpu-results
gpu:
	PYTHONPATH=.:kernels $(PYTHON) -m benches.gpu_day --out $(RESULTS) \
		$(if $(KERNELS),--kernels $(KERNELS)) $(GPU_FLAGS)

# The compiled kernels for an H100, to take along. Triton finds them where Python and Triton are of
# the same versions: PYTHON=<one with that Triton>.
gpu-kernels:
	PYTHONPATH=.:kernels $(PYTHON) tests/aot/gate.py --arch 90 --cache build/triton
	PYTHONPATH=.:kernels $(PYTHON) -m benches.kernel_cache pack build/triton kernels-sm90.tar.gz

# `make gpu` from a bare export, on a machine like the one to come, with the CPU in the GPU's place.
gpu-rehearsal:
	$(PYTHON) tests/gpu_replica/rehearse.py

.venv/torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "encodec_rt needs Python >= 3.10")'
	@echo 'installing into .venv, which takes some minutes'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip
# torch first and by its exact version, so that a build of it that is at hand is taken.
	@$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	@touch $@

.venv/demo: EXTRAS := files,plots
.venv/demo-link: EXTRAS := files,plots,link
.venv/demo-server: EXTRAS := server
.venv/demo .venv/demo-link .venv/demo-server: .venv/torch pyproject.toml
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

$(STAMP): .venv/torch pyproject.toml
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
	rm -rf .venv .venv-triton36 .venv-gpu-replica gpu-results kernels-sm90.tar.gz .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist demo demo-link *.egg-info
