"""May a candidate replace production? Paired evaluation, confidence bounds and the quality gate."""
