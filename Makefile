# Every target does all set-up it needs: a fresh machine with Python >= 3.11 and make is enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Optional parts (pyproject.toml): make test EXTRAS=dev,openvino,train,gpu
EXTRAS ?= dev
comma  := ,
STAMP  := $(VENV)/.setup-$(subst $(comma),-,$(EXTRAS))

.PHONY: run test test-slow check soak bench docs clean
.DEFAULT_GOAL := help

help:
	@echo "make run        set up, then run the main job: scenarios/surface_d5.yaml"
	@echo "make test       set up, then run the tests"
	@echo "make test-slow  tests that need more time"
	@echo "make check      lint, types, layers, repository map"
	@echo "make bench      speed ratios, measured side by side"
	@echo "make soak       long acceptance runs (results go to docs/soak.md)"
	@echo "make docs       regenerate generated documents"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python >= 3.11 is needed; call make with PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(STAMP)

run: $(STAMP)
	$(BIN)/hil run scenarios/surface_d5.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow and not live' -n 2 --junitxml=$(VENV)/junit-test.xml
	$(BIN)/python -m pytest -m 'live and not slow' --junitxml=$(VENV)/junit-live.xml
	$(BIN)/python tools/check_skips.py $(VENV)/junit-test.xml $(VENV)/junit-live.xml

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m 'slow and not live and not soak' -n 2 --junitxml=$(VENV)/junit-slow.xml
	$(BIN)/python -m pytest -m 'slow and live and not soak' --junitxml=$(VENV)/junit-slow-live.xml
	$(BIN)/python tools/check_skips.py $(VENV)/junit-slow.xml $(VENV)/junit-slow-live.xml

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit/test_repository.py

bench: $(STAMP)
	$(BIN)/hil bench model

soak: $(STAMP)
	$(BIN)/python tools/soak.py

docs: $(STAMP)
	$(BIN)/python tools/gendocs.py

clean:
	rm -rf $(VENV) build *.egg-info
