# Every target does all the set-up it needs; the stamps in .venv make the second run instant.
#   make demo    the simulated robot does its tasks, from camera to command
#   make test    the test suite
#   make test-simpler  the tests of SimplerEnv's tasks; installs ManiSkill and a software Vulkan driver
#   make train   behaviour cloning of the shipped policy; stop it at any time, it goes on
#   make bench   the ablation in docs/results/trimmed.md: success, time and cost of every part of a plan (most of an hour)
#   make gpu-bench  a full-size policy of random weights on the GPU that is there (minutes)
#   make evaluation  tables and pictures of docs/results/evaluation.md from the results under benchmarks/ (seconds)
#   make pages   docs/architecture.md and docs/reference from docstrings and tables
#   make docs    a site from docs/ with search, under out/site; what leads nowhere is an error
#   make lint    ruff and pyright
#   make setup   only the set-up
# DEMO_ARGS, TEST_ARGS, TRAIN_ARGS and BENCH_ARGS are handed on: make demo DEMO_ARGS="--episodes 5"

PYTHON ?= $(shell for p in python3.11 python3.13 python3.12 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
# Pinned: the exporter's graphs are compared bit by bit between machines.
TORCH ?= torch==2.13.0
# Where torch for the CPU alone lies. Used only if the default index would bring CUDA's libraries along (gigabytes).
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
SYSTEM_PACKAGES ?= python3-venv libegl1 libgl1-mesa-dri libosmesa6
# The real clients that `trimvla serve` is tested with. Without what they declare: openpi-client wants NumPy 1, and its
# client does not need it; vla-eval wants what its simulators and its command line need.
CLIENTS ?= openpi-client==0.1.2 vla-eval==0.8.0
CLIENTS_NEED ?= msgpack anyio typing-extensions
DEMO_ARGS ?=
TEST_ARGS ?=
TEST_WORKERS ?= 2
TRAIN_ARGS ?=
BENCH_ARGS ?=

BIN := .venv/bin
READY := .venv/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Idle threads sleep instead of spinning: cameras, policy and control share the cores.
export OMP_WAIT_POLICY := PASSIVE
# Each process that a test starts would compile all its modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-simpler train bench gpu-bench evaluation pages docs lint clean
.DEFAULT_GOAL := demo

help:
	@sed -n '1,/^$$/s/^# *//p' Makefile

setup: $(READY)

demo: $(READY)
	$(BIN)/trimvla demo $(DEMO_ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

test-simpler: .venv/.simpler
	$(BIN)/python -m pytest -m simpler --simpler $(TEST_ARGS)

train: $(READY)
	$(BIN)/trimvla train $(TRAIN_ARGS)

gpu-bench: $(READY)
	$(BIN)/trimvla gpu-bench $(BENCH_ARGS)

bench: $(READY)
	$(BIN)/trimvla ablate tabletop --page docs/results/trimmed.md $(BENCH_ARGS)

evaluation: $(READY)
	$(BIN)/trimvla report

pages: $(READY)
	$(BIN)/python -m trimvla.launch.pages.reference

docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs out/site
	@echo "out/site/index.html"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf .venv build dist *.egg-info out

.venv/.system:
	@launch/install_system.sh $(SYSTEM_PACKAGES)
	@mkdir -p .venv && touch $@

.venv/bin/python: | .venv/.system
	@test -n "$(PYTHON)" || { echo "error: no Python from 3.10 to 3.13 was found" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# ManiSkill brings opencv-python, which writes into the same folder as the headless wheel: only that one stays.
.venv/.simpler: pyproject.toml launch/install_vulkan.sh $(READY)
	@launch/install_vulkan.sh
	@echo "installing ManiSkill"
	@$(BIN)/pip install -qq --editable ".[simpler]" && $(BIN)/pip uninstall -qq -y opencv-python && \
		$(BIN)/pip install -qq --force-reinstall --no-deps opencv-python-headless && touch $@ || \
		echo "ManiSkill is not to be had here: its tests are skipped" >&2

$(READY): pyproject.toml | .venv/bin/python
	@if ! $(BIN)/python -c "import torch" 2>/dev/null; then \
		plan=$$($(BIN)/pip install --dry-run "$(TORCH)" 2>/dev/null) || { echo "error: $(TORCH) is not to be had" >&2; exit 1; }; \
		case "$$plan" in *nvidia*) index="--index-url $(TORCH_CPU_INDEX)";; *) index=;; esac; \
		echo "installing $(TORCH) $$index"; \
		$(BIN)/pip install -qq $$index "$(TORCH)"; \
	fi
	@echo "installing trimvla and what its verbs need"
	@$(BIN)/pip install -qq --editable ".[camera,train,export,sim,record,dataset,serve,metrics,docs,dev]"
	@$(BIN)/pip install -qq --no-deps $(CLIENTS) && $(BIN)/pip install -qq $(CLIENTS_NEED) || \
		echo "openpi's and vla-eval's own clients are not to be had: their tests are skipped" >&2
	@$(BIN)/pip install -qq --editable ".[tensorrt-rtx]" || echo "no TensorRT for RTX here: its tests are skipped" >&2
	@$(BIN)/pip install -qq --editable ".[ros]" || echo "no rosbags here: its tests are skipped" >&2
	@$(BIN)/pip install -qq --editable ".[openvino]" || echo "no OpenVINO here: its tests are skipped" >&2
	@touch $@
