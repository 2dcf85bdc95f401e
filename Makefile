# `make demo` and `make test` set up all that they need in .venv.
#
#   TORCH_INDEX   index of torch's CPU builds, for a machine without a GPU where pip's own index has
#                 none: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
#   PYTHON        the Python that .venv is made with, 3.10 or newer
#   ARGS          settings for the demo, such as ARGS="training.steps=20"

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint

demo: $(INSTALLED)
	$(VENV)/bin/python demo/run.py $(ARGS)

test: $(INSTALLED) lint
	tests/cluster/install.sh
	$(VENV)/bin/python -m pytest

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(INSTALLED): pyproject.toml
	@echo "== installing into $(VENV): 1.3 GB with torch's CPU build, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --progress-bar off --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[dev]'
	touch $@
