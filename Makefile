# `make demo` and `make test` set up all that they need in .venv, from the exact versions of requirements.txt.
#
#   TORCH_INDEX   index of torch's CPU builds, for a machine without a GPU where pip's own index has
#                 none: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
#   PYTHON        the Python that .venv is made with, 3.10 or newer
#   GPU_PYTHON    the Python of a machine with a GPU that has tests/gpu/requirements.txt installed
#   JOBS          how many processes run the tests; the cluster's stay in one
#   ARGS          settings for the demo, such as ARGS="training.steps=20"

PYTHON ?= python3
VENV ?= .venv
GPU_PYTHON ?= python3
JOBS ?= 2
PARALLEL = --numprocesses=$(JOBS) --no-loadscope-reorder
# Without its compiled files Python needs 5 s instead of 2 to import torch, at each start of a rank.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test tests check check-lowest check-newest check-ranges gpu-check quantized lint docs coverage lock \
	environment environment-lowest environment-newest

demo: environment
	$(VENV)/bin/python demo/run.py $(ARGS)

# Everything, the tests on a real Slurm included. `make -j2 test` has the linters beside the tests.
test: lint tests

tests: environment
	tests/cluster/install.sh
	tests/stores/install.sh $(VENV)/bin/python
	$(VENV)/bin/python -m pytest $(PARALLEL)
	$(MAKE) quantized

# Bases with quantised weights. Their two libraries lie in a folder of their own, 50 MB to fetch: transformers
# imports them at each start wherever they are installed.
quantized: environment build/quantized/.installed
	PYTHONPATH="$(CURDIR)/build/quantized" $(VENV)/bin/python -m pytest tests/quantized \
		tests/libraries/test_bitsandbytes.py tests/libraries/test_torchao.py \
		tests/libraries/test_transformers.py -k "not test_generate"

build/quantized/.installed: pyproject.toml | environment
	$(VENV)/bin/python -m pip install --quiet --upgrade --no-deps --target build/quantized \
		"torchao>=0.18,<0.19" "bitsandbytes>=0.50,<0.51"
	touch $@

# The main job, every family, two ranks and the launcher, in a few minutes: on the lock, and at the ends of
# the ranges in pyproject.toml. `make -j2 check-ranges` does both ends side by side.
check: environment
	$(VENV)/bin/python -m pytest -m check $(PARALLEL)

check-lowest: environment-lowest
	build/lowest/bin/python -m pytest -m check $(PARALLEL)

check-newest: environment-newest
	build/newest/bin/python -m pytest -m check $(PARALLEL)

check-ranges: check-lowest check-newest

# On one GPU, in some minutes; results go into benchmarks/gpu.json. No network is needed.
gpu-check:
	$(GPU_PYTHON) -m pytest -m gpu tests/gpu

lint: environment
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The docs site, in build/site; a warning is an error.
docs: environment
	$(VENV)/bin/python -m mkdocs build --strict

# Which lines and branches the tests run, ranks and launchers included; HTML in build/coverage.
# TESTS names a part: make coverage TESTS="-m check".
coverage: environment
	rm -rf build/coverage
	-$(VENV)/bin/python -m coverage run -m pytest $(PARALLEL) $(TESTS)
	$(VENV)/bin/python -m coverage combine -q
	$(VENV)/bin/python -m coverage html -q --directory build/coverage
	$(VENV)/bin/python -m coverage report

environment-lowest:
	@$(PYTHON) tools/environment.py build/lowest requirements-lowest.txt --index "$(TORCH_INDEX)"

environment-newest:
	@$(PYTHON) tools/environment.py build/newest --ranges --index "$(TORCH_INDEX)"

environment:
	@$(PYTHON) tools/environment.py $(VENV) --index "$(TORCH_INDEX)"

# Exact versions for any Python that is admitted. What torch's CUDA build needs stays out: torch names its
# own, and the CPU build needs none of it.
CUDA := cuda-bindings cuda-pathfinder cuda-toolkit triton $(addprefix nvidia-,cublas cuda-cupti \
	cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 \
	nvjitlink nvshmem-cu13 nvtx)
COMPILE = uv pip compile pyproject.toml --quiet --extra dev --universal --upgrade --no-annotate \
	--no-header $(addprefix --no-emit-package ,$(CUDA))

lock: environment
	$(VENV)/bin/python -m pip install --quiet uv
	$(VENV)/bin/$(COMPILE) --python-version 3.10 --output-file requirements.txt
	$(VENV)/bin/$(COMPILE) --python-version 3.10 --resolution lowest-direct \
		--output-file requirements-lowest.txt
