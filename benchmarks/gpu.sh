#!/usr/bin/env bash
# What one CUDA GPU can tell, in under nine minutes: training steps in bf16 with their share of the device's peak, what
# prefix sharing saves under each attention kernel, what compiling is worth, and a step of GRPO. JSON and pages go to
# the folder given, or to $OUT; what found no time or failed is named in skipped.txt there.
#
#   benchmarks/gpu.sh FOLDER
#   ROWS="compiled grpo_step" benchmarks/gpu.sh FOLDER       # only these
#   DEVICE=cpu SHAPES=tiny benchmarks/gpu.sh /tmp/gpu        # the same commands, to see that they run
#
# It takes the packages that it finds: without TRL it measures this project alone, and with torch, transformers, peft and
# jaxtyping alone only the log-prob path. The most important comes first, and no row takes the time of all others.
set -uo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
OUT=${1:-${OUT:?the folder to write to}}
DEVICE=${DEVICE:-cuda}
SHAPES=${SHAPES:-qwen-0.5B qwen-1.5B}
ROWS=${ROWS:-}
PYTHON=${PYTHON:-python3}
LIMIT_SECONDS=${LIMIT_SECONDS:-530}
export PYTHONPATH="$HERE/..${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
mkdir -p "$OUT"

has() { "$PYTHON" -c "import $1" > /dev/null 2>&1; }

# bounded SECONDS NAME SCRIPT ARGUMENT...: runs a benchmark in that time, or in what is left; what it has measured by
# then is kept.
bounded() {
  local most=$1 name=$2 script=$3 left=$((LIMIT_SECONDS - SECONDS)) status=0
  shift 3
  if [ -n "$ROWS" ] && [[ " $ROWS " != *" $name "* ]]; then return 0; fi
  if ((left < 20)); then
    echo "$name: no time left" | tee -a "$OUT/skipped.txt"
    return 0
  fi
  timeout --signal=INT --kill-after=5 "$((left < most ? left : most))" "$PYTHON" "$HERE/$script" --name "$name" \
    --device "$DEVICE" --dtype bfloat16 --out "$OUT" "$@" > "$OUT/$name.log" 2>&1 || status=$?
  tail -n 25 "$OUT/$name.log"
  if ((status)); then echo "$name: ended with $status; see $name.log" | tee -a "$OUT/skipped.txt"; fi
}

# steps SECONDS NAME ARGUMENT...: training steps, beside TRL's where it is installed.
steps() {
  local most=$1 name=$2
  shift 2
  bounded "$most" "$name" training_step.py --repetitions 1 --mfu "${peer[@]}" "$@"
}

"$PYTHON" - > "$OUT/versions.json" << 'END'
import json
from importlib.metadata import PackageNotFoundError, version

found = {}
for name in ("torch", "transformers", "trl", "lightning", "hydra-core", "datasets", "peft", "triton", "numpy"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = None
print(json.dumps(found, indent=1))
END
cat "$OUT/versions.json"

small=${SHAPES%% *}
tokens=(--prompts 4 --completion 256)
rollouts=(--cells 512,64 --steps 3)
if [ "$DEVICE" = cpu ]; then
  tokens=(--prompts 2 --completion 16)
  rollouts=(--quick --cells 8,6)
fi
peer=()
has trl || peer=(--no-peer)
runs=yes
for package in hydra lightning datasets pydantic wandb; do has "$package" || runs=; done
if [ -z "$runs" ]; then
  echo "training_step, grpo_step: need hydra-core, lightning, datasets, pydantic and wandb" | tee -a "$OUT/skipped.txt"
fi

if [ -n "$runs" ]; then
  for shape in $SHAPES; do steps 100 "training_step_$shape" --shape "$shape" --method dpo_precomputed; done
fi
for kernel in sdpa flex varlen; do
  bounded 70 "prefix_sharing_$kernel" prefix_sharing.py --shape "$small" --kernel "$kernel" "${tokens[@]}"
done
bounded 60 prefix_sharing_cudnn prefix_sharing.py --shape "$small" --cudnn "${tokens[@]}"
bounded 60 prefix_sharing_groups prefix_sharing.py --shape "$small" --group 8 "${tokens[@]}"
bounded 90 compiled compiled.py --shape "$small"
if [ -n "$runs" ]; then
  if has trl; then bounded 90 grpo_step grpo_step.py --repetitions 1 --no-uneven "${rollouts[@]}"; fi
  steps 200 training_step_more --shape "$small" --method dpo_frozen_copy sft kto reward_model orpo simpo
  steps 60 training_step_layouts --shape "$small" --method dpo_precomputed --no-peer --layouts padded packed
fi
echo "$SECONDS s; see $OUT"
