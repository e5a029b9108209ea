"""Model versions, the content-addressed model store with its manifests, and the rows of training runs."""
