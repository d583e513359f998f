"""The package's names load on first use."""

import subprocess
import sys


def test_importing_spectra_costs_no_torch_import():
    code = (
        "import sys, speclock.spectra as spectra; assert 'torch' not in sys.modules;"
        "spectra.SpectralPenalty; print(dir(spectra))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "weight_matrices" in run.stdout
