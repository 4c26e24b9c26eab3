# make test   the test suite          make demo   the whole pipeline on synthetic radiographs
# make demo-ct   segmentation of synthetic CT heads
# All create the virtual environment .venv on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
# oneDNN's kernels on every processor; TensorFlow by itself enables them only where there is AVX-512
export TF_ENABLE_ONEDNN_OPTS ?= 1

.PHONY: test slow parity lint demo demo-ct clean

.venv/installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# two processes of one thread each: less CPU time than two processes of two threads
test: .venv/installed lint
	TF_NUM_INTRAOP_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not real'

slow: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'slow or real'

# ported weights and losses against torch, transformers and lightly, in a virtual environment of their own (1 GB);
# lightly without its dependencies, since torchvision would bring CUDA
.venv-parity/installed: setup.cfg pyproject.toml
	test -x .venv-parity/bin/python || $(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --editable '.[dev,parity]'
	.venv-parity/bin/python -m pip install --quiet --no-deps 'lightly==1.6.0'
	touch $@

parity: .venv-parity/installed
	.venv-parity/bin/python -m pytest tests/parity

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# two areas of synthetic radiographs: images -> records -> training (a small network without pretrained weights) -> scores
# at image and study level
demo: .venv/installed
	rm -rf $(DEMO)/images $(DEMO)/tfrecords $(DEMO)/runs
	$(BIN)/kmura demo-data $(DEMO)/images --areas XR_SHOULDER,XR_WRIST --train-studies 400 --test-studies 100 --side 256
	$(BIN)/kmura build-tfrecords $(DEMO)/images --out $(DEMO)/tfrecords
	$(BIN)/kmura inspect $(DEMO)/tfrecords
	$(BIN)/kmura fit --area all --recipe demo --records $(DEMO)/tfrecords --runs $(DEMO)/runs

# six synthetic CT heads: scans -> records -> a network of each plane and their fusion -> scores -> a segmented scan
demo-ct: .venv/installed
	rm -rf $(DEMO)/heads $(DEMO)/ct-records $(DEMO)/ct-runs
	$(BIN)/kmura segment demo-data $(DEMO)/heads --heads 6 --spacing 4
	$(BIN)/kmura segment build $(DEMO)/heads --out $(DEMO)/ct-records
	$(BIN)/kmura segment fit --plane all --recipe ct-mini --records $(DEMO)/ct-records --runs $(DEMO)/ct-runs
	$(BIN)/kmura evaluate $(DEMO)/ct-runs/CT_HEAD/fused
	$(BIN)/kmura segment predict $(DEMO)/ct-runs/CT_HEAD $(DEMO)/heads/1.nii.gz --transform $(DEMO)/heads/1.txt \
		--out $(DEMO)/regions.nii.gz --table $(DEMO)/regions.csv

clean:
	rm -rf .venv .venv-parity $(DEMO)/images $(DEMO)/tfrecords $(DEMO)/runs \
		$(DEMO)/heads $(DEMO)/ct-records $(DEMO)/ct-runs build dist *.egg-info
