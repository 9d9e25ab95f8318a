"""What lies beside the tests of our CPU kernels can be imported by them: `products`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
