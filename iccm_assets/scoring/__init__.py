"""Score requirements texts: the orchestra that re-implements them, the judge's results, stored scores."""
