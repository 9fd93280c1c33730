"""Real weights, real prompts, a reward that no one here wrote: DPO makes stories260K cheerful."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_dpo_raises_vaders_reward_of_real_stories(tmp_path, shared_data):
    """The recipe as it stands, its pairs included; docs/evidence.md has the numbers that it was seen to reach."""
    command = [str(Path(sys.executable).parent / "align"), "train", "experiment=stories260k_sentiment"]
    command += [f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}", "hardware.threads=1"]
    environment = os.environ | {"ALIGNMENT_SHARED": str(shared_data.parent), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    (run_dir,) = (tmp_path / "runs" / "stories260k_sentiment").iterdir()
    lines = [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]
    before, after = lines[0]["metrics"], lines[-1]["metrics"]
    assert after["reward/total"]["ci_low"] > before["reward/total"]["ci_high"] + 0.1
    assert after["win_rate/against_start"]["ci_low"] > 0.55
    assert 0 < after["kl/policy_start_nats"]["mean"] < 40
    assert lines[-1]["num_prompts"] >= 30
    # The pairs keep the tokens as they were sampled.
    pairs = tmp_path / "runs" / "pipeline" / "stories260k_sentiment" / "pairs" / "pairs.jsonl"
    first = json.loads(pairs.read_text().splitlines()[0])
    assert first["chosen_ids"] != first["rejected_ids"]
    assert first["margin"] > 0
