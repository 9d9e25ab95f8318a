"""What lies beside the tests of bench can be imported by them: `work`, `rows`, `pretend`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
