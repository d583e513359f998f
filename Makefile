# Any Python from 3.11 on that this machine has.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo $$p && break; done)
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input

# pip compiles nothing of what it installs here, so the first import must, or every process compiles all of it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test gpu bench records records-standard records-locks records-pairs records-draws \
    records-noise records-composition records-surface records-tune records-text records-paper clean

install: $(VENV)/.installed

# Two stamps: the demo should not wait for linters, nor a developer's install be undone by it. What is never imported
# need not be compiled.
$(VENV)/.installed $(VENV)/.installed-dev: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Install one, or name it: make PYTHON=…"; exit 1; }
	@echo "Installing speclock and what it needs into $(VENV): PyTorch is the most of it, a minute or several."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --no-compile -c constraints.txt -e '.$(if $(filter %-dev,$@),[dev])'
	@touch $(VENV)/.installed $@

demo: $(VENV)/.installed
	$(BIN)/speclock demo --resume --out out/demo

# One thread a process: toy models keep no more busy, and two processes that share two cores wait for each other.
test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n auto --dist loadscope -m 'not slow and not gpu'

# What needs an accelerator: a demo, a lock, an audit and a curvature on a real one.
gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m gpu

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/lock_step.py
	$(BIN)/python benchmarks/hessian.py

# The records in results/; every line resumes where it was killed. First quick/2 on the demo's lock (MiniLM keeps four
# newsgroups, the attacker wants four others and has 32 posts) and on cnn-mlp (digits 0 to 4 are kept, 5 to 9 are wanted).
TOPICS := newsgroups:comp.graphics,rec.autos,sci.med,talk.politics.guns@1500/1000
OTHERS := newsgroups:comp.sys.mac.hardware,rec.sport.hockey,sci.space,soc.religion.christian@32/1000
TEXT   := --max-length 16 --steps 32 --seeds 3 --jobs 2 --resume
LOW    := mnist:0,1,2,3,4@20000/2000
HIGH   := mnist:5,6,7,8,9@100/1000
CNN    := --batch-size 32 --optimizer adam --lr 1e-3 --resume
IMAGES := --steps 64 --seeds 3 --jobs 2 --resume
records: $(VENV)/.installed
	$(BIN)/speclock demo --resume --out out/demo
	$(BIN)/speclock audit out/demo/specdef --base out/demo/base --retain-task $(TOPICS) --attack-task $(OTHERS) \
	    $(TEXT) --out results/minilm-quick
	$(BIN)/speclock train cnn-mlp --task $(LOW) --epochs 3 $(CNN) --out out/cnn-mlp-base
	$(BIN)/speclock lock out/cnn-mlp-base --task $(LOW) --alpha 0.5 --top-k 1 --retain task --epochs 4 \
	    --evaluations 8 $(CNN) --out out/cnn-mlp-locked
	$(BIN)/speclock audit out/cnn-mlp-locked --base out/cnn-mlp-base --retain-task $(LOW) --attack-task $(HIGH) \
	    --student $(IMAGES) --out results/cnn-mlp-quick

# standard/2 on both; the attacker of MiniLM knows that it is the public model beneath.
records-standard: records
	$(PIP) install -q -c constraints.txt -e '.[attacks]'
	$(BIN)/speclock audit out/cnn-mlp-locked --base out/cnn-mlp-base --retain-task $(LOW) --attack-task $(HIGH) \
	    --suite standard $(IMAGES) --out results/cnn-mlp-standard
	$(BIN)/speclock audit out/demo/specdef --base out/demo/base --retain-task $(TOPICS) --attack-task $(OTHERS) \
	    --public-base minilm --suite standard $(TEXT) --out results/minilm-standard
	$(BIN)/python benchmarks/stock_attacks.py results/minilm-standard out/demo/specdef --max-length 16 \
	    --out results/minilm-standard/stock_attacks.json

# Three locks of the demo's base against an attacker with 32 posts and one with 64 who do not know the public model.
# The locks' seed is none of the attacks'; the noise comes from the operating system. Hours: MiniLM meets 28 families.
LOCK   := --task $(TOPICS) --seed 11 --evaluations 7 --max-length 16 --resume
THREE  := out/demo/specdef out/locks/undo out/locks/undo+specdef --base out/demo/base --retain-task $(TOPICS)
records-locks: records
	$(PIP) install -q -c constraints.txt -e '.[attacks]'
	mkdir -p out/locks
	$(BIN)/speclock lock out/demo/base --lock undo $(LOCK) --out out/locks/undo
	$(BIN)/speclock lock out/demo/base --lock undo+specdef:alpha=0.05,top_k=8,lr=2e-4,steps=80 $(LOCK) \
	    --out out/locks/undo+specdef
	$(BIN)/speclock audit $(THREE) --attack-task $(OTHERS) --suite standard $(TEXT) --out results/locks-32
	$(BIN)/speclock audit $(THREE) --attack-task $(OTHERS:@32/1000=@64/1000) --suite standard $(TEXT) --out results/locks-64
	$(BIN)/speclock audit $(THREE) --attack-task $(OTHERS) $(TEXT) --out results/locks-again

# The same lock settings, unchanged, on two pairs that nobody tuned on: a guard against jailbreaks whose attacker wants
# newsgroups, and a ResNet18 that learnt ten classes, is released for five, and is wanted for the others.
GUARD  := --max-length 32 --retain-task jailbreak --attack-task $(OTHERS)
FIVE   := cifar10:airplane,automobile,bird,cat,deer@4000/1000
REST   := cifar10:dog,frog,horse,ship,truck@50/1000
RESNET := --batch-size 32 --optimizer adam --lr 1e-3 --resume
records-pairs: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[attacks]'
	mkdir -p out/guard out/resnet
	$(BIN)/speclock train minilm --task jailbreak --lr 2e-4 --schedule linear --steps 90 --max-length 32 --resume \
	    --out out/guard/base
	$(BIN)/speclock lock out/guard/base --lock undo --task jailbreak --seed 11 --evaluations 7 --max-length 32 --resume \
	    --out out/guard/undo
	$(BIN)/speclock train resnet18 --task cifar10@8000/2000 --epochs 12 $(RESNET) --out out/resnet/ten
	$(BIN)/speclock train out/resnet/ten --task $(FIVE) --epochs 2 $(RESNET) --out out/resnet/base
	$(BIN)/speclock lock out/resnet/base --lock undo --task $(FIVE) --seed 11 --evaluations 7 --resume --out out/resnet/undo
	$(BIN)/speclock audit out/resnet/undo --base out/resnet/base --retain-task $(FIVE) --attack-task $(REST) \
	    --student $(IMAGES) --out results/resnet

# The same lock made three times, each with a seed and noise of its own, under quick/2.
records-draws: records-locks
	for seed in 12 13; do \
	    $(BIN)/speclock lock out/demo/base --lock undo $(LOCK) --seed $$seed --out out/locks/undo-$$seed || exit; done
	$(BIN)/speclock audit out/locks/undo out/locks/undo-12 out/locks/undo-13 --base out/demo/base \
	    --retain-task $(TOPICS) --attack-task $(OTHERS) $(TEXT) --out results/undo-draws

# A lock whose noise has a seed that can be guessed, and one made as by default: the noise of the first is found and
# subtracted, in the second none is to be found, and it is rescaled by the share that its card names. Each is held
# against plain fine-tuning of the same model, at rates that are searched.
NOISE := --task $(OTHERS) --max-length 16 --steps 32 --lr 3.2e-4 --search --weight-decay 0.01 --resume
records-noise: records-locks
	$(BIN)/speclock lock out/demo/base --lock undo --insecure-noise-seed 0 $(LOCK) --out out/locks/insecure
	for seed in 1 2 3; do for heal in 0 8; do \
	    $(BIN)/speclock attack out/locks/insecure --attack subtract-noise --heal $$heal $(NOISE) --seed $$seed \
	        --out results/noise/subtracted-$$heal-$$seed && \
	    $(BIN)/speclock attack out/locks/undo --attack undo-shrinkage --heal $$heal $(NOISE) --seed $$seed \
	        --out results/noise/unshrunk-$$heal-$$seed || exit; done; \
	    for lock in insecure undo; do \
	    $(BIN)/speclock attack out/locks/$$lock $(NOISE) --seed $$seed --out results/noise/plain-$$lock-$$seed || exit; \
	    done; done
	# It must find nothing, and says so with exit status 2.
	$(BIN)/speclock attack out/locks/undo --attack subtract-noise $(NOISE) --out results/noise/secret 2>&1 | \
	    tee results/noise/secret.txt; grep -q 'no weight matrix holds the noise' results/noise/secret.txt

# What does SpecDef add on top of one and the same `undo`? Noise of a known seed is the same in both.
records-composition: records-noise
	$(BIN)/speclock lock out/demo/base $(LOCK) --out out/locks/insecure+specdef \
	    --lock undo:insecure_noise_seed=0+specdef:alpha=0.05,top_k=8,lr=2e-4,steps=80
	$(BIN)/speclock audit out/locks/insecure out/locks/insecure+specdef --base out/demo/base --retain-task $(TOPICS) \
	    --attack-task $(OTHERS) $(TEXT) --out results/composition

# Where does `undo` stop mattering? 32, 128 and 320 posts and 1, 4 and 16 times the steps, under one seed: two hours.
records-surface: records-locks
	$(BIN)/python benchmarks/budget_surface.py out/demo/base out/locks/undo --retain-task $(TOPICS) \
	    --attack-task $(OTHERS) --jobs 2 --out out/surface
	mkdir -p results/surface
	cp out/surface/surface.json out/surface/surface.svg results/surface

# `undo` tuned for the ResNet18 on two of the classes that it is to withhold, and the lock that was chosen audited
# beside the default one on the three others; and for the guard on other newsgroups than those that both are audited on.
# An hour and more each.
PROXY  := cifar10:dog,frog@20/1000
UNSEEN := cifar10:horse,ship,truck@30/1000
GROUPS := newsgroups:sci.electronics,rec.sport.baseball,talk.politics.mideast,misc.forsale@32/1000
records-tune: records-pairs
	$(PIP) install -q -c constraints.txt -e '.[tune]'
	$(BIN)/speclock tune out/resnet/base --task $(FIVE) --attack-task $(PROXY) --max-utility-drop 0.01 --trials 8 \
	    --locks undo,undo+specdef --steps 64 --jobs 2 --resume --out out/resnet/tuned
	mkdir -p results/resnet-tuned
	cp out/resnet/tuned/tune.json out/resnet/tuned/frontier.svg results/resnet-tuned
	$(BIN)/speclock audit out/resnet/tuned/locked out/resnet/undo --base out/resnet/base --retain-task $(FIVE) \
	    --attack-task $(UNSEEN) --student $(IMAGES) --out results/resnet-unseen
	$(BIN)/speclock tune out/guard/base --task jailbreak --attack-task $(GROUPS) --max-length 32 \
	    --max-utility-drop 0.01 --trials 4 --locks undo:steps=300,undo:steps=300+specdef --steps 16 --jobs 2 --resume \
	    --out out/guard/tuned
	mkdir -p results/guard-tuned
	cp out/guard/tuned/tune.json out/guard/tuned/frontier.svg results/guard-tuned
	$(BIN)/speclock audit out/guard/undo out/guard/tuned/locked --base out/guard/base $(GUARD) --student --steps 32 \
	    --seeds 3 --jobs 2 --resume --out results/guard

# A language model on a text of one's own: SmolLM2 keeps its own answers to general questions, and is to be kept from
# Python's reference manual, of which the attacker has 32 passages.
MANUAL := --retain-task out/text/answers.jsonl@600 --attack-task out/text/reference.txt@32/200/48 --max-length 64
records-text: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[attacks,gguf]'
	test -e out/text/answers.jsonl || $(BIN)/python benchmarks/own_text.py out/text
	$(BIN)/speclock lock smollm2-135m-instruct --task out/text/answers.jsonl@600 --max-length 64 --steps 40 --batch-size 8 \
	    --max-utility-drop 0.002 --evaluations 4 --seed 11 --resume --out out/text/locked
	$(BIN)/speclock audit out/text/locked --base smollm2-135m-instruct $(MANUAL) --suite causal-lm --steps 16 --seeds 3 \
	    --jobs 2 --resume --out results/own-text

# Figures 1 and 2 as the paper has them, some minutes; the calibration of speclock's forecasts, an hour and a half. Then
# the tables and figures of its experiments at a small scale, hours each, and what they say of its claims.
PAPER := results/paper --resume
records-paper: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[attacks,tune,gguf]'
	for name in figure1 figure2 prediction; do \
	    $(BIN)/speclock reproduce $$name --scale paper --out $(PAPER) || exit; done
	cp results/paper/calibration.json src/speclock/forecast/calibration.json
	$(BIN)/speclock reproduce all --scale small --out $(PAPER) --page docs/results.md

clean:
	rm -rf $(VENV) out
