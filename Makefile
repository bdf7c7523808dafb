# make demo   install, start the service, make one video of examples/, stop. Result in out/
# make up     install, start the service and the studio page, stay until Ctrl-C
# make test   install, run the whole suite
# make lint   ruff and mypy

VENV    ?= .venv
BIN     := $(VENV)/bin
WORKERS ?= 3
RUN     := $(VENV)/.troupe-run
DEV     := $(VENV)/.troupe-dev

# In the order of the folders: the long files with few tests would else come last, one behind the other.
# Torch's own thread pools fight each other when several processes share few cores.
test: export OMP_NUM_THREADS ?= 1

.PHONY: help demo up test lint venv clean

help:
	@sed -n 's/^# //p' Makefile | head -4

demo: $(RUN)
	@$(BIN)/troupe demo

up: $(RUN)
	@$(BIN)/troupe up $(if $(PORT),--port $(PORT))

test: $(DEV)
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/mypy

venv: $(DEV)

$(RUN): pyproject.toml constraints.txt .ci/setup
	@bash .ci/setup $(VENV) .
	@touch $@

$(DEV): pyproject.toml constraints.txt .ci/setup
	@bash .ci/setup $(VENV) '.[dev]'
	@touch $@ $(RUN)

clean:
	rm -rf out .troupe
