"""Run a model over growing sequences: runners, generation, sampling and scoring."""
