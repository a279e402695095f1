"""Statistics, metrics and judgement of a run."""
