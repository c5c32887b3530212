# What a checkout can do. Every target makes .venv first when it is missing, or older than what it is made from.
#   make PYTHON=python3.12           another interpreter
#   make quickstart ARGS=--keep      further options of the command behind a target

BIN := .venv/bin
READY := .venv/.ready

.PHONY: help quickstart test lint bench docs clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(READY) ## Simulate events, train on them, serve the model and ask it: the whole way in minutes
	$(BIN)/mlaas quickstart $(ARGS)

test: $(READY) ## Run the quick tests; ARGS="-m slow" or "-m soak" runs the others
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY) ## Check format, style, types and the directions of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## Run every benchmark
	@for file in $(filter-out %/loops.py,$(wildcard benchmarks/*.py)); do echo "== $$file" && $(BIN)/python "$$file" || exit; done

docs: $(READY) ## Write the documentation into site/
	$(BIN)/mkdocs build --strict $(ARGS)

clean: ## Remove .venv, caches and what was built
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist site *.egg-info

$(READY): pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" .ci/venv
	@touch $@
