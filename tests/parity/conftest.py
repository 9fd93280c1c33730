import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
for folder in (ROOT / "benchmarks", ROOT / "tests" / "helpers", ROOT / "tests" / "parity"):
    sys.path.insert(0, str(folder))
