"""What lies here can be imported by every test of bench and by the workers that it starts: `work`, `rows`, `pretend`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
