# Every command does all the set-up it needs: `make demo`, `make test`, `make quick`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two processes of one thread each: most tests are too small for more threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

.PHONY: demo test quick fuzz floors lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/mwa-export demo -o demo --force

test: $(VENV)/installed
	$(PYTEST)

quick: $(VENV)/installed
	$(PYTEST) -m "not slow"

# Ten minutes for each test, with new seeds: FUZZ_SECONDS=60 make fuzz
fuzz: $(VENV)/installed
	FUZZ_SECONDS=$${FUZZ_SECONDS:-600} $(PYTEST) tests/fuzz

floors: $(VENV)/installed
	$(BIN)/python .ci/floors.py > $(VENV)/floors.txt
	$(PYTHON) -m venv $(VENV)-floors
	$(VENV)-floors/bin/python -m pip install --quiet -c $(VENV)/floors.txt -e ".[dev]"
	$(VENV)-floors/bin/python -m pip install --quiet --no-deps -c constraints.txt torchscale
	$(VENV)-floors/bin/pytest -m "not slow" -n 2

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site in site/; every warning, such as a broken link, is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	# Without its dependencies: inference does not run them, and fairscale needs a compiler.
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt torchscale
	touch $@

clean:
	rm -rf $(VENV) demo build site *.egg-info
