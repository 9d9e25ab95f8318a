"""Tests of speed: `import stubbed_gpu` finds the GPU that does nothing, `import costs` what measures Python."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
