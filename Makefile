# Two commands matter: `make notebooks` runs the series, `make test` runs every test.
# Needed: Python 3.11 or newer with venv, and make. Another Python: make PYTHON=python3.12 notebooks

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Two at a time, with one thread each: as fast as two cores allow, and the same everywhere.
OMP_NUM_THREADS ?= 1
TEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$(OMP_NUM_THREADS) $(BIN)/python -m pytest -n 2

# What other processors make of a sum: settings of torch, oneDNN and MKL, those of one line with commas between them.
PROCESSORS := OMP_NUM_THREADS=1 OMP_NUM_THREADS=2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	ONEDNN_MAX_CPU_ISA=AVX2 ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI \
	ATEN_CPU_CAPABILITY=default,ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2,ONEDNN_MAX_CPU_ISA=AVX2

.DEFAULT_GOAL := help
.PHONY: help notebooks test test-processors lab site browser-test wheel wheel-series lint format refresh budgets clean

help:
	@echo "make notebooks   run the series headless; executed copies and HTML pages go to build/"
	@echo "make test        run all tests: tests/ and every notebook"
	@echo "make test-processors   the same as on other processors: under $(words $(PROCESSORS)) settings, two hours"
	@echo "make lab         open the series in JupyterLab; make lab LAB_OPTIONS='--no-browser --port 8889'"
	@echo "make site        the series as a static site with search, in build/site/"
	@echo "make browser-test   run the notebooks in JupyterLab in a browser (needs Chromium; about 15 minutes)"
	@echo "make wheel-series   build the wheel, install it, and run the series that it brings, in an empty folder"
	@echo "make lint        check style        make format   repair it"
	@echo "make refresh     run the notebooks in place, to commit their outputs"
	@echo "make budgets     write the times of the last 'make notebooks' into the notebooks' budget lines"
	@echo "make clean       remove build/ and caches (the environment stays in $(VENV))"

# Installed once, and again whenever the requirements change.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"bitlab needs Python 3.11 or newer, and $(PYTHON) is older: try make PYTHON=python3.12")'
	@echo "installing into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[notebooks,minilm,dev]'
	@touch $@

notebooks: $(INSTALLED)
	@$(BIN)/python -m bitlab.course.series run

refresh: $(INSTALLED)
	@$(BIN)/python -m bitlab.course.series refresh

budgets: $(INSTALLED)
	@$(BIN)/python -m bitlab.course.series budgets

test: lint
	@$(TEST) --dist loadfile tests
	@$(TEST) --dist loadscope --nbval-lax --nbval-current-env --nbval-cell-timeout=180 notebooks

test-processors:
	@for each in $(PROCESSORS); do \
		echo "== $$each"; \
		env $$(echo $$each | tr , ' ') $(MAKE) --no-print-directory test || red="$$red $$each"; \
	done; \
	test -z "$$red" || { echo "red under:$$red"; exit 1; }

# Root, who has no home to protect in a container, is let in too.
LAB_OPTIONS ?=
lab: $(INSTALLED)
	@$(BIN)/jupyter lab --notebook-dir=notebooks $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_OPTIONS)

# What setuptools left of an earlier build would end up in the wheel.
wheel: $(INSTALLED)
	@rm -rf build/lib build/bdist.* build/wheel
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .

# A Python of its own, without bitlab, that borrows the packages which bitlab needs.
PACKAGES = import sysconfig; print(sysconfig.get_path("purelib"))
wheel-series: wheel
	@set -e; place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; \
	$(BIN)/python -m venv --without-pip "$$place/venv"; python="$$place/venv/bin/python"; \
	$(BIN)/python -m pip --python "$$python" install --quiet --disable-pip-version-check --no-deps build/wheel/*.whl; \
	$(BIN)/python -c '$(PACKAGES)' > "$$("$$python" -c '$(PACKAGES)')/borrowed.pth"; \
	cd "$$place"; unset PYTHONPATH; export JUPYTER_PATH="$(abspath $(VENV))/share/jupyter"; \
	"$$python" -m bitlab notebooks series; \
	"$$python" -m bitlab.course.series run --notebooks series --build build

# What only one target needs is an extra of pyproject.toml.
$(VENV)/.installed-%: $(INSTALLED)
	@echo "installing what make $* needs into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

site: $(VENV)/.installed-site
	@$(BIN)/python -m bitlab.course.site

browser-test: $(VENV)/.installed-browser-test
	@$(BIN)/python -m pytest tests/browser

lint: $(INSTALLED)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "style: run make format"; exit 1; }

format: $(INSTALLED)
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis
	find bitlab tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
