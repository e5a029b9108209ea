"""The one place that touches weights: loading, generating, embedding."""

import os

# OpenMP threads that wait for work by spinning starve everything beside them: two training steps' worth of
# sums took 69 s instead of 6 s on two cores shared with other processes. They must sleep instead, and the
# library reads this when torch is first loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
