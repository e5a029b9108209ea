"""Everything that touches weights: loading, generating, embedding."""

import os
import warnings

# OpenMP threads that wait for work by spinning starve the other processes of the machine: the sums of two
# training steps took 69 s instead of 6 s on two shared cores. They must sleep instead, and the library reads
# this when torch is first loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# peft reads this property of transformers for each adapter; nobody who reads the warning can change that.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
