# Everything runs in .venv, made on first use. `make demo` and `make test` need no system package and no GPU.
PYTHON ?= python3
VENV   ?= .venv
# Another build of torch: make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint format eval eval-deps tiny clean

demo: $(VENV)/.package
	$(BIN)/anygpt demo --out out

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Held-out results of the embedded checkpoint, by judges that this project did not train.
eval: eval-deps
	$(BIN)/python eval/tiny.py

# --no-deps: these three pin old libraries (basic-pitch, Resemblyzer) or build against portaudio (tinysoundfont).
eval-deps: $(VENV)/.package
	$(PIP) --no-build-isolation -e ".[eval,data,train]"
	$(PIP) --no-deps basic-pitch==0.4.0 Resemblyzer==0.1.4 tinysoundfont==0.3.7

# Rebuilds every weight of the embedded checkpoint: data, codecs, alignment pre-training, instruction tuning.
tiny: eval-deps
	@echo "the steps are listed here by the checkpoint's release"; exit 1

# torch goes first and alone, so that no dependency can pull another build of it.
$(VENV)/.torch: constraints.txt
	@echo "installing torch into $(VENV): some minutes, once"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) setuptools
	touch $@

$(VENV)/.package: $(VENV)/.torch setup.cfg
	$(PIP) --no-build-isolation -e .
	touch $@

$(VENV)/.dev: $(VENV)/.torch setup.cfg
	$(PIP) --no-build-isolation -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) out build dist *.egg-info
