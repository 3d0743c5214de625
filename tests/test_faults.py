"Some of what `make faults` does: writers are killed at random moments, and what is there in the end is the same"
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.slow
def test_killed_at_random_moments():
    script = Path(__file__).with_name('faults.py')
    done = subprocess.run([sys.executable, script, '--kills', '10', '--only', 'train stages', 'grid', 'search', 'archive', 'evaluation'],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts['kills'] >= 10 and counts['wrong'] == 0
