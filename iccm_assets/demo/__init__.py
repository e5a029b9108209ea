"""`iccm demo`: the whole loop on simulated traffic, its acceptance checks and its reports."""
