"""Makes the small networks of another folder importable, also under importlib mode."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "networks"))
