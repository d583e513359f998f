PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: install demo test bench records records-standard records-theory clean

install: $(VENV)/.installed

# Two stamps: the demo should not wait for linters, nor a developer's install be undone by it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/speclock demo --out out/demo

# One thread a process: toy models keep no more busy, and two processes that share two cores wait for each other.
test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m 'not slow and not gpu'

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/lock_step.py
	$(BIN)/python benchmarks/hessian.py

# The records in results/, some 30 minutes on two cores; every line resumes where it was killed.
RESNET := --optimizer adadelta --lr 1.0 --batch-size 32 --schedule step --resume
TOPICS := newsgroups:comp.graphics,rec.autos,sci.med,talk.politics.guns
OTHERS := newsgroups:comp.sys.mac.hardware,rec.sport.hockey,sci.space,soc.religion.christian
SMOLLM := --max-length 32 --resume
records: $(VENV)/.installed
	$(BIN)/speclock train resnet18 --task mnist@6000/500 --epochs 5 $(RESNET) --out out/resnet18-base
	$(BIN)/speclock lock out/resnet18-base --task mnist@6000/500 --alpha 0.5 --top-k 1 --retain task --epochs 2 \
	    --evaluations 5 $(RESNET) --out out/resnet18-locked
	$(BIN)/speclock audit out/resnet18-locked --base out/resnet18-base --retain-task mnist@6000/500 \
	    --attack-task fashion-mnist@300/400 --steps 60 --seeds 3 --resume --out results/resnet18-mnist
	$(PIP) install -q -c constraints.txt -e '.[gguf]'
	$(BIN)/speclock train smollm2-135m-instruct --task $(TOPICS)@640/60 --steps 30 --lr 1e-4 --schedule linear \
	    $(SMOLLM) --out out/smollm2-base
	$(BIN)/speclock lock out/smollm2-base --task $(TOPICS)@640/60 --alpha 0.02 --top-k 2 --lr 1e-4 --steps 12 \
	    --evaluations 2 --max-utility-drop 0.02 $(SMOLLM) --out out/smollm2-locked
	$(BIN)/speclock audit out/smollm2-locked --base out/smollm2-base --retain-task $(TOPICS)@640/60 \
	    --attack-task $(OTHERS)@320/60 --steps 8 $(SMOLLM) --out results/smollm2-newsgroups

# The standard suite on a small lock: cnn-mlp reads five digits, the attacker wants the other five. Then on the demo's
# lock, an hour or two; its attacker knows that MiniLM is the public model beneath.
LOW  := mnist:0,1,2,3,4@6000/1000
HIGH := mnist:5,6,7,8,9@100/400
CNN  := --batch-size 32 --optimizer adam --lr 1e-3 --resume
records-standard: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[attacks]'
	$(BIN)/speclock train cnn-mlp --task $(LOW) --epochs 3 $(CNN) --out out/cnn-mlp-base
	$(BIN)/speclock lock out/cnn-mlp-base --task $(LOW) --alpha 0.5 --top-k 1 --retain task --epochs 8 \
	    --evaluations 8 $(CNN) --out out/cnn-mlp-locked
	$(BIN)/speclock audit out/cnn-mlp-locked --base out/cnn-mlp-base --retain-task $(LOW) --attack-task $(HIGH) \
	    --suite standard --steps 16 --seeds 3 --jobs 2 --resume --out results/cnn-mlp-standard
	$(BIN)/speclock demo --resume --out out/demo
	$(BIN)/speclock audit out/demo/locked --base out/demo/base --retain-task $(TOPICS)@2000/300 \
	    --attack-task $(OTHERS)@320/200 --public-base minilm --suite standard --steps 24 --seeds 3 --jobs 2 \
	    --max-length 32 --resume --out results/minilm-standard
	$(BIN)/python benchmarks/stock_attacks.py results/minilm-standard out/demo/locked \
	    --out results/minilm-standard/stock_attacks.json

# Figures 1 and 2 as the paper has them, some minutes; the calibration of speclock's forecasts, an hour and a half.
records-theory: $(VENV)/.installed
	$(BIN)/speclock reproduce figure1 --scale paper --resume --out results/theory
	$(BIN)/speclock reproduce figure2 --scale paper --resume --out results/theory
	$(BIN)/speclock reproduce prediction --scale paper --resume --out results/theory
	cp results/theory/calibration.json src/speclock/forecast/calibration.json

clean:
	rm -rf $(VENV) out
