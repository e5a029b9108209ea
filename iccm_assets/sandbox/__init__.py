"""Run untrusted code in isolation: bubblewrap, seccomp, init process, warm pool, limits; no database."""
