#!/usr/bin/env bash
# What one CUDA GPU can tell, in under nine minutes: training steps in bf16 with their share of the device's peak, what
# prefix sharing saves under each attention kernel, what compiling is worth, and a step of GRPO. JSON and pages go to the folder given, or to $OUT.
#
#   benchmarks/gpu.sh FOLDER
#   DEVICE=cpu SHAPES=tiny benchmarks/gpu.sh /tmp/gpu        # the same commands, to see that they run
#
# It takes the packages that it finds: without TRL it measures this project alone, and without Hydra, Lightning or
# datasets only the log-prob path.
set -uo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
OUT=${1:-${OUT:?the folder to write to}}
DEVICE=${DEVICE:-cuda}
SHAPES=${SHAPES:-qwen-0.5B qwen-1.5B}
PYTHON=${PYTHON:-python3}
LIMIT_SECONDS=${LIMIT_SECONDS:-530}
export PYTHONPATH="$HERE/..${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
mkdir -p "$OUT"

has() { "$PYTHON" -c "import $1" > /dev/null 2>&1; }

# bounded NAME SCRIPT ARGUMENT...: runs a benchmark in what is left of the time; what it has measured by then is kept.
bounded() {
  local name=$1 script=$2 left=$((LIMIT_SECONDS - SECONDS)) status=0
  shift 2
  if ((left < 20)); then
    echo "$name: no time left" | tee -a "$OUT/skipped.txt"
    return 0
  fi
  timeout --signal=INT --kill-after=5 "$left" "$PYTHON" "$HERE/$script" --name "$name" --device "$DEVICE" \
    --dtype bfloat16 --out "$OUT" "$@" > "$OUT/$name.log" 2>&1 || status=$?
  tail -n 25 "$OUT/$name.log"
  if ((status)); then echo "$name: ended with $status; see $name.log" | tee -a "$OUT/skipped.txt"; fi
  return "$status"
}

# steps NAME ARGUMENT...: training steps beside TRL's, or without where it is missing or fails with what else is there.
steps() {
  local name=$1
  shift
  if has trl && bounded "$name" training_step.py --repetitions 1 --mfu "$@"; then return; fi
  bounded "${name}_alone" training_step.py --repetitions 1 --mfu --no-peer "$@"
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

tokens=(--pairs 4 --completion 256)
if [ "$DEVICE" = cpu ]; then tokens=(--pairs 2 --completion 16); fi
if has hydra && has lightning && has datasets && has pydantic; then
  for shape in $SHAPES; do
    steps "training_step_$shape" --shape "$shape" --method dpo_precomputed --layouts padded packed
  done
else
  echo "training_step: needs hydra-core, lightning, datasets and pydantic" | tee -a "$OUT/skipped.txt"
fi
for shape in $SHAPES; do
  bounded "prefix_sharing_$shape" prefix_sharing.py --shape "$shape" "${tokens[@]}"
done
bounded compiled compiled.py --shape "${SHAPES%% *}"
for kernel in flex varlen; do
  bounded "prefix_sharing_$kernel" prefix_sharing.py --shape "${SHAPES%% *}" --kernel "$kernel" "${tokens[@]}"
done
if has hydra && has lightning && has datasets && has pydantic; then
  steps training_step_more --shape "${SHAPES%% *}" --method dpo_frozen_copy sft
  if has trl; then
    rollouts=(--cells 512,64 --steps 3)
    if [ "$DEVICE" = cpu ]; then rollouts=(--quick --cells 8,6); fi
    bounded grpo_step grpo_step.py --repetitions 1 --no-uneven "${rollouts[@]}"
  fi
fi
echo "$SECONDS s; see $OUT"
