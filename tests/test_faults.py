"Some of what `make faults` does: writers are killed at random moments, and what is there in the end is the same"
import json
import os
from pathlib import Path

import pytest

from forks import run_script


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    done = run_script(Path(__file__).with_name('faults.py'), '--kills', 10, '--only', 'train stages', 'grid', 'search', 'archive', 'evaluation', folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts['kills'] >= 10 and counts['wrong'] == 0
