# Two commands on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export JAX_PLATFORMS ?= cpu
# Without bytecode on disk, each of a hundred processes compiles JAX's source again: 3.7 s for an import of 1.3 s.
unexport PYTHONDONTWRITEBYTECODE

EXPERIMENTS := initialization checkerboard family family_glyphs discriminator spectra superresolution \
  segmentation input_gradients equivariance blur_ladder multigrid inverse superposition tones

WORKERS := -n 2 --dist loadfile --no-loadscope-reorder --durations=20 --durations-min=5

.PHONY: demo quick results test fast test-all lint wheel clean

demo: $(STAMP)                 ## train the generators, measure their checkerboards, write a report
	$(BIN)/python -m experiments run configs/checkerboard.toml

quick: $(STAMP)                ## the same, as a smoke run of under a minute
	$(BIN)/python -m experiments run configs/checkerboard.toml --quick

results: $(STAMP)              ## run every experiment that is not complete, and write RESULTS.md
	$(BIN)/python -m experiments results $(EXPERIMENTS:%=configs/%.toml)

test: lint fast                ## lint, then the tests of minutes

# What tests compile is kept for the next time, on any Python with this jaxlib.
fast test-all: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache

fast: $(STAMP)                 ## all tests but those that take long for their nature
	$(BIN)/python -m pytest -m "not slow" $(WORKERS)

# LLVM takes up to a minute at its highest level, and a second at this one, for the random numbers of one kernel.
# Tests of minutes and slow ones share fixtures and programs, so that one session has both.
test-all: lint $(STAMP)        ## those, too: kills, Slurm, a browser, two processes, every experiment, optimized numbers
	$(BIN)/python -m pytest -m "not (slow and optimized)" $(WORKERS)
	XLA_FLAGS=--xla_backend_optimization_level=1 $(BIN)/python -m pytest -m optimized -n 2

lint: $(STAMP)                 ## formatting, lint rules, floors of the house, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Most of what is installed is never imported: Python compiles the rest when it is.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tconvjax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=python3.12, for example."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

wheel: $(STAMP)                ## build the wheel and use it in an environment of its own
	rm -rf dist $(VENV)-wheel
	$(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python -c 'import glob, zipfile; names = zipfile.ZipFile(*glob.glob("dist/*.whl")).namelist(); \
	  top = {name.split("/")[0] for name in names}; print(*sorted(top)); \
	  assert {t for t in top if not t.endswith(".dist-info")} == {"tconvjax"} and "tconvjax/py.typed" in names, names'
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt dist/*.whl
	cd dist && $(abspath $(VENV))-wheel/bin/tconvjax --version
	cd dist && $(abspath $(VENV))-wheel/bin/python -m tconvjax explain --kernel 3 3 --stride 2
	cd dist && $(abspath $(VENV))-wheel/bin/python -c 'import tconvjax; print(tconvjax.nnx, tconvjax.linen, tconvjax.cli)'

clean:                         ## remove the virtual environment and caches, keep runs
	rm -rf $(VENV) $(VENV)-wheel dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis .jax_cache
