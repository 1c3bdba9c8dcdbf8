"""Makes `runner_work` importable here and in the workers, which get the import path of their parent."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
