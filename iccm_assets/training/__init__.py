"""Turn a dataset snapshot into a candidate checkpoint, in a trainer process of its own."""
