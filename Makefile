# Each target does its own set-up: a virtual environment in .venv, the locked dependencies, the editable install.
# What it needs beforehand: make, and Python 3.10 or newer (another one than python3: make PYTHON=python3.12 test).

PYTHON ?= python3
UV ?= uv
BIN := .venv/bin
STAMP := .venv/.installed

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help demo report test test-all bench lint format setup lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## fit a curve, train ResNet-20 for a minute, say where the pictures are
	@echo "== 1 of 2: fitting the default curve"
	@$(BIN)/python scripts/fit.py
	@root="$${CIFAR10_ROOT:-data}"; \
	if [ -e "$$root/cifar-10-batches-py" ] || [ -e "$$root/cifar-10-python.tar.gz" ]; then \
		echo "== 2 of 2: ResNet-20 on a part of CIFAR-10 (from $$root), a short run"; data="--data cifar10 --download false"; \
	else \
		echo "== 2 of 2: ResNet-20 on SYNTHETIC images, a short run: CIFAR-10 is not in $$root"; data="--data synthetic"; \
	fi; \
	$(BIN)/python scripts/cifar.py $$data $(DEMO_FLAGS)
	@echo "== The pictures:"
	@ls -1 "$$(ls -td runs/fit/*/ | head -n 1)"*.png "$$(ls -td runs/cifar/*/ | head -n 1)"*.png
	@echo "== All runs in TensorBoard:  $(BIN)/tensorboard --logdir runs"

# One to one and a half minutes on two CPU cores; the learning rate drops late enough for its effect to be seen.
DEMO_FLAGS = --max_epochs 6 --milestones '{4: 0.01}' --compile false \
	--limit_train_batches 40 --limit_val_batches 8 --limit_test_batches 16

REPORT := runs/report$(if $(QUICK),_quick)
REPORTED := rates own $(foreach seed,$(if $(QUICK),0,0 1 2),with_$(seed) without_$(seed))
SHORT := $(if $(QUICK),--max_epochs 8 --limit_train_batches 50 --limit_val_batches 10 --limit_test_batches 20)

report: $(STAMP) $(REPORTED:%=$(REPORT)/%/summary.json) ## both experiments, all questions: hours (make report QUICK=1: 5 minutes)
	@$(BIN)/python scripts/report.py $(REPORT)

# Each run is made where its summary.json is missing, and resumed where it was interrupted.
RUN_DIR = --run_dir $(@D) $(if $(wildcard $(@D)/config.yaml),--ckpt_path last)
$(REPORT)/rates/summary.json: | $(STAMP)
	$(BIN)/python scripts/fit.py --num_seeds 8 --lr 1 0.1 0.01 0.001 \
		--epochs 10 50 100 200 500 1000 2000 5000 10000 $(if $(QUICK),,50000 100000) $(RUN_DIR)
$(REPORT)/own/summary.json: | $(STAMP)
	$(BIN)/python scripts/fit.py --num_seeds 8 --function '(x+1)**2 + sin(x**2+1) - log(x**2+1)' \
		--lr 0.01 0.001 --epochs 200 500 1000 2000 3000 3500 4000 auto $(RUN_DIR)
$(REPORT)/with_%/summary.json: | $(STAMP)
	$(BIN)/python scripts/cifar.py --probe_train true $(SHORT) --seed $* --milestones '{5: 0.01}' $(RUN_DIR)
# A milestone that changes nothing: the weights one epoch after it are kept, as in the run with the drop.
$(REPORT)/without_%/summary.json: | $(REPORT)/with_%/summary.json
	$(BIN)/python scripts/cifar.py --probe_train true $(SHORT) --seed $* --milestones '{5: 0.1}' \
		--ckpt_path $(REPORT)/with_$*/checkpoints/end_of_epoch4.ckpt $(RUN_DIR)

test: $(STAMP) ## run the test suite without its slow tests (some of it: make test ARGS="-k fit")
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_FLAGS) -m "not slow" $(ARGS)

test-all: $(STAMP) ## run all tests: kills, millions of inputs, compilers, browsers
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_FLAGS) $(ARGS)

# Two processes, a file each at a time. One thread each: OpenMP's threads wait for each other at the price of the rest.
TEST_FLAGS = -n 2 --dist loadfile --no-loadscope-reorder

bench: $(STAMP) ## time both experiments against plain PyTorch loops (make bench ARGS=--quick: three minutes)
	@$(BIN)/python benchmarks/bench.py $(ARGS)

lint: $(STAMP) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## bring the code into the style that lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(STAMP) ## only the set-up

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "litlab needs Python 3.10 or newer, and '$(PYTHON)' is not: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@echo "== Setting up .venv, once: some minutes, most of them for torch (about 3 GB on Linux)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@

lock: ## write requirements.lock anew (needs uv; all the newest: make lock ARGS=--upgrade)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv on the PATH: pip install uv" >&2; exit 1; }
	$(UV) pip compile pyproject.toml --extra test --universal --python-version 3.10 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet \
		--output-file requirements.lock $(ARGS)

clean: ## remove .venv, caches and build outputs (runs/ and data/ stay)
	rm -rf .venv build dist litlab.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
